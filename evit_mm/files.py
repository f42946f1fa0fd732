"""Files that are written whole or not at all, and folders that one process writes to."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError

__all__ = ['locked_folder', 'read_json', 'read_lines', 'write_atomically', 'write_json']


@contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = 'w') -> Iterator[IO[Any]]:
    """Open a file for writing that replaces ``path`` when the block ends without an error.

    Until then the bytes go to a file of another name next to it, so that neither an interruption
    nor a full disk leaves a half-written file, or loses what ``path`` held before.

    Args:
        path: The file to write; its folder must exist.
        mode: ``'w'`` for UTF-8 text, ``'wb'`` for bytes.

    Raises:
        UserError: If the file can't be written.
    """
    path = Path(path)
    # By process: those of a distributed run may write the same file at once.
    unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        with unfinished.open(mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror or error}') from error
    finally:
        unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a power cut brings no old file back."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # some file systems refuse; the file itself is on the disk
        pass


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


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = None) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        UserError: If the file can't be written.
    """
    with write_atomically(path) as file:
        file.write(json.dumps(content, indent=indent) + '\n')


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
