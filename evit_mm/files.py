"""Files that are written whole or not at all, files that are read, and folders of one process."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evit_runtime.files import write_atomically, write_json

from .errors import UserError

__all__ = ['locked_folder', 'read_json', 'read_lines', 'write_atomically', 'write_json']


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file is missing or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a text file, without empty ones and the space around them.

    Raises:
        UserError: If it can't be read.
    """
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except (OSError, ValueError) as error:
        raise UserError(f'can\'t read {path}: {getattr(error, "strerror", None) or error}'
                        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


@contextmanager
def locked_folder(folder: str | os.PathLike[str], purpose: str, *, beside: bool = False
                  ) -> Iterator[None]:
    """Keep other processes from using a folder in the same way.

    The system releases the lock of a process that has ended, however it ended. Processes that this
    one forks don't hold it. Where no lock can be had, as on a read-only disk, there is none.

    Args:
        folder: The folder.
        purpose: What it is used for, for the message: ``'trains in'``.
        beside: Put the lock's file next to the folder, whose own files mean something.

    Raises:
        UserError: If another process holds the lock; names its host and process.
    """
    folder = Path(folder)
    path = folder.with_name(f'.{folder.name}.lock') if beside else folder / '.lock'
    try:
        descriptor = _lock(path)
    except BlockingIOError as error:
        raise UserError(f'{error.filename} {purpose} {folder} already: wait until it '
                        'has ended, stop it, or choose another folder') from None
    except OSError:
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Lock a file, and return its descriptor.

    Raises:
        BlockingIOError: If another process has locked it; its ``filename`` is the owner.
        OSError: If it can't be opened or locked.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Unlike flock's, such a lock stays behind when the process forks, and works on NFS.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                owner = f'process {os.getpid()} on {socket.gethostname()}'
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, owner.encode(), 0)
                return descriptor
        except BlockingIOError as error:
            owner = os.pread(descriptor, 300, 0).decode(errors='replace').strip()
            os.close(descriptor)
            raise BlockingIOError(error.errno, error.strerror, owner or 'another process'
                                  ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the owner has deleted the file in between
