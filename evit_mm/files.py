"""Files that are written whole or not at all, and files that are read."""

import json
import os
from pathlib import Path
from typing import Any

from evit_runtime.files import write_atomically, write_json

from .errors import UserError

__all__ = ['read_json', 'read_lines', 'write_atomically', 'write_json']


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
