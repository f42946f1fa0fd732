"""What an analysis has found so far, in a JSON file that an interruption can't spoil."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

__all__ = ['Results']


class Results(Mapping[str, Any]):
    """Findings by name, written at every addition; a repeated run goes on with what it finds.

    The file holds ``{"settings": {...}, "items": {name: finding}}``. Findings are what JSON
    knows; tuples come back as lists, and numbers that are not finite as None.

    Args:
        path: The file; its folder is made.
        settings: What the findings depend on. Findings of other settings are not mixed with
            these.
        overwrite: Forget findings of other settings instead of refusing them, and findings of
            the same settings too.

    Attributes:
        kept (int): How many findings an earlier run left in the file.

    Raises:
        UserError: If the file has other settings, is not one of these, or can't be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.settings: dict[str, Any] = _plain(dict(settings))
        self._items: dict[str, Any] = {}
        if path.exists() and not overwrite:
            self._items = self._read()
        self.kept = len(self._items)
        # Now rather than after the first minutes of work: a folder that can't be written.
        self._write()

    def add(self, key: str, value: Any) -> None:
        """Add a finding, or replace it, and write the file.

        Raises:
            UserError: If the file can't be written.
        """
        self._items[key] = _plain(value)
        self._write()

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def _read(self) -> dict[str, Any]:
        advice = 'pass --overwrite to replace it, or another --out'
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            settings, items = content['settings'], content['items']
            names = sorted({*settings, *self.settings})
            items = dict(items)
        except OSError as error:
            raise UserError(f'can\'t read {self.path}: {error.strerror}') from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{self.path} holds no results of an analysis: {advice}') from error
        for name in names:
            absent = '(not there)'
            earlier, now = settings.get(name, absent), self.settings.get(name, absent)
            if earlier != now:
                raise UserError(f'{self.path} has results of other settings ({name}: {earlier} '
                                f'there, {now} here): {advice}')
        return items

    def _write(self) -> None:
        content = {'settings': self.settings, 'items': self._items}
        unfinished = self.path.with_name(f'{self.path.name}.tmp')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
            unfinished.replace(self.path)
        except OSError as error:
            raise UserError(f'can\'t write {self.path}: {error.strerror}') from error


def _plain(value: Any) -> Any:
    """What JSON gives back for ``value``, so that settings compare equal after reading."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
