"""Results of an analysis in a JSON file, from which an interrupted run continues."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_json

__all__ = ['Results']

_ADVICE = 'pass --overwrite to replace it, or another --out'
_DIGEST_BYTES = 16
_CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')
_WEIGHT_SUFFIXES = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors')


class Results(Mapping[str, Any]):
    """Results by name, written after every addition; a repeated run reuses them.

    The file holds ``{"settings": {...}, "items": {name: result}}``. Results are JSON values:
    tuples come back as lists, and numbers that are not finite as None.

    ``"files"`` holds fingerprints of the files that are named by settings or by names of results,
    such as checkpoints and configs (including their base files). If a file in the settings has
    changed, or ``data`` has another fingerprint, the file is refused; the result of a changed
    config is dropped. ``"partial"`` holds results that are not finished.

    Args:
        path: The JSON file; its folder is created.
        settings: Everything that the results depend on. A file with other settings is refused.
        overwrite: Discard the results in the file.
        names: Names of the results of this run. Those that the file already has are counted in a
            line of output.
        data: Fingerprints of other inputs, such as a folder of images, by the name that error
            messages use for them.

    Attributes:
        num_reused (int): Number of results that were read from the file.

    Raises:
        UserError: If the file has other settings, is not a results file, or can't be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False,
                 names: Iterable[str] | None = None, data: Mapping[str, str] | None = None
                 ) -> None:
        self.path = path
        self.settings: dict[str, Any] = _to_json(dict(settings))
        self._items: dict[str, Any] = {}
        self._partial: dict[str, Any] = {}
        self._setting_files = {text: fingerprint for text in _strings_in(self.settings)
                               if (fingerprint := _fingerprint(text))}
        self._data = dict(data or {})
        own_names = list(dict.fromkeys(names or ()))
        # Before the work starts, because a file may change while it runs.
        self._item_files = {name: fingerprint for name in own_names
                            if (fingerprint := _fingerprint(name))}
        if path.exists() and not overwrite:
            self._read()
        self.num_reused = len(self._items)
        self._report_reused(own_names if names is not None else list(self._items))
        # A folder that can't be written must show before the work, not after it.
        self._write()

    def add(self, name: str, value: Any) -> None:
        """Add or replace a result and write the file; its partial result is dropped.

        Raises:
            UserError: If the file can't be written.
        """
        self._partial.pop(name, None)
        self._items[name] = _to_json(value)
        self._add_fingerprint(name)
        self._write()

    def partial(self, name: str) -> Any:
        """Return the last value of `add_partial` for an unfinished result, or None."""
        return self._partial.get(name)

    def add_partial(self, name: str, value: Any) -> None:
        """Add or replace an unfinished result and write the file.

        Raises:
            UserError: If the file can't be written.
        """
        self._partial[name] = _to_json(value)
        self._add_fingerprint(name)
        self._write()

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def _report_reused(self, names: list[str]) -> None:
        reused = sum(name in self._items for name in names)
        if reused:
            print(f'reusing {reused} of {len(names)} results of an earlier run in {self.path}; '
                  'pass --overwrite to measure again', flush=True)

    def _add_fingerprint(self, name: str) -> None:
        if name not in self._item_files and (fingerprint := _fingerprint(name)):
            self._item_files[name] = fingerprint

    def _read(self) -> None:
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            settings, items = content['settings'], dict(content['items'])
            partial = dict(content.get('partial', {}))
            files = content.get('files', {})
            setting_files = dict(files.get('settings', {}))
            data = dict(files.get('data', {}))
            item_files = dict(files.get('items', {}))
            setting_names = sorted({*settings, *self.settings})
        except OSError as error:
            raise UserError(f'can\'t read {self.path}: {error.strerror}') from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{self.path} is not a results file of an analysis: {_ADVICE}'
                            ) from error
        if not items and not partial:
            return  # an earlier run failed before its first result
        # Changed files first, because settings may differ only as a consequence. Files that no
        # longer exist are ignored.
        self._check_unchanged(self._setting_files, setting_files)
        for name in setting_names:
            earlier, now = (values.get(name, '(missing)') for values in (settings, self.settings))
            if earlier != now:
                raise UserError(f'{self.path} has results of other settings ({name}: {earlier} '
                                f'in the file, {now} in this run): {_ADVICE}')
        # Data last, because other settings may select other data.
        self._check_unchanged(self._data, data)
        for name in dict.fromkeys([*items, *partial]):
            fingerprint = self._item_files.get(name) or _fingerprint(name)
            if fingerprint and fingerprint != item_files.get(name):
                print(f'{name} has changed since {self.path} was written: measuring it again',
                      flush=True)
                items.pop(name, None)
                partial.pop(name, None)
                item_files.pop(name, None)
        self._items, self._partial = items, partial
        self._item_files = {**item_files, **self._item_files}

    def _check_unchanged(self, now: Mapping[str, str], earlier: Mapping[str, str]) -> None:
        for name, fingerprint in now.items():
            if earlier.get(name, fingerprint) != fingerprint:
                raise UserError(f'{name} has changed since {self.path} was written: {_ADVICE}')

    def _write(self) -> None:
        content: dict[str, Any] = {'settings': self.settings, 'items': self._items}
        item_files = {name: fingerprint for name, fingerprint in self._item_files.items()
                      if name in self._items or name in self._partial}
        if self._setting_files or item_files or self._data:
            content['files'] = {'settings': self._setting_files, 'items': item_files,
                                'data': self._data}
        if self._partial:
            content['partial'] = self._partial
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'can\'t write {self.path}: {error.strerror}') from error
        write_json(self.path, content, indent=1)


def _to_json(value: Any) -> Any:
    """Return what reading ``value`` from JSON would give, so that settings compare equal."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _strings_in(value: Any) -> Iterator[str]:
    """Yield the strings of a nested structure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings_in(item)


def _fingerprint(name: str) -> str | None:
    """Return a digest of the file that ``name`` names, or None if it names no file.

    A model's form after a colon, as in ``config.py:deploy``, is not part of the path.
    """
    for path in (name, name.rpartition(':')[0]):
        # os.path, because pathlib raises for strings that are too long for a path.
        if os.path.splitext(path)[1] and os.path.isfile(path):
            if path.endswith(_CONFIG_SUFFIXES):
                return _config_fingerprint(path)
            return _content_fingerprint(path)
    return None


def _config_fingerprint(path: str) -> str:
    """Return a digest of a config's values, base files included, and of the weights it names."""
    from mmengine.config import Config  # not at module level: few settings name a config

    try:
        values = Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception:  # building the model reports whatever is wrong with it
        return _content_fingerprint(path)
    text = json.dumps(values, sort_keys=True, default=str)
    weights = sorted({_content_fingerprint(name) for name in _strings_in(values)
                      if name.endswith(_WEIGHT_SUFFIXES) and os.path.isfile(name)})
    return ' '.join([blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest(), *weights])


def _content_fingerprint(path: str) -> str:
    # Not a CRC: a checkpoint is a zip file that ends with its own, so all would be equal.
    digest = blake2b(digest_size=_DIGEST_BYTES)
    try:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f'can\'t read {path}: {error.strerror}') from error
    return digest.hexdigest()
