"""The error that the command lines print as one sentence without a traceback."""

__all__ = ['UserError']


class UserError(Exception):
    """Mistake of the user, described in one sentence: what is wrong, where, and how to fix it."""
