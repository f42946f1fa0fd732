"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError

__all__ = ['write_atomically', 'write_json']

_LONGEST_NAME = 255  # bytes, on most file systems


@contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = 'w', *, is_synced: bool = True
                     ) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces ``path`` when the block ends without an error.

    Until then the bytes go to a file of another name next to it, so that neither an interruption
    nor a full disk leaves a half-written file, or loses what ``path`` held before.

    Args:
        path: The file to write; its folder must exist.
        mode: ``'w'`` for UTF-8 text, ``'wb'`` for bytes.
        is_synced: Wait until the file is on the disk, so that it survives a power cut. Many small
            files, such as pictures, are written faster without.

    Raises:
        UserError: If the file can't be written.
    """
    path = Path(path)
    # By process: those of a distributed run may write the same file at once.
    ending = f'.{os.getpid()}.tmp'
    unfinished = path.with_name(_shortened(path.name, _LONGEST_NAME - len(ending)) + ending)
    try:
        with unfinished.open(mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        unfinished.replace(path)
        if is_synced:
            _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror or error}') from error
    finally:
        unfinished.unlink(missing_ok=True)


def _shortened(name: str, size: int) -> str:
    """Return a name, or what a number of bytes hold of it."""
    return os.fsdecode(os.fsencode(name)[:size])


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


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = None) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        UserError: If the file can't be written.
    """
    with write_atomically(path) as file:
        file.write(json.dumps(content, indent=indent) + '\n')
