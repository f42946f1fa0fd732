"""The error that the command lines print as one sentence without a traceback."""

import errno
from typing import TypeGuard

__all__ = ['UserError', 'is_full_disk']


class UserError(Exception):
    """Mistake of the user, described in one sentence: what is wrong, where, and how to fix it."""


def is_full_disk(error: BaseException) -> TypeGuard[OSError]:
    """Return whether an error says that a disk or a user's quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
