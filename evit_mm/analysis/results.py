"""What an analysis has found so far, in a JSON file that an interruption can't spoil."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..errors import UserError

__all__ = ['Results']

_ADVICE = 'pass --overwrite to replace it, or another --out'
_DIGEST = 16  # bytes
_CONFIGS = ('.py', '.json', '.yaml', '.yml')
_WEIGHTS = ('.pth', '.pt', '.ckpt', '.bin', '.safetensors')


class Results(Mapping[str, Any]):
    """Findings by name, written at every addition; a repeated run goes on with what it finds.

    The file holds ``{"settings": {...}, "items": {name: finding}}``. Findings are what JSON
    knows; tuples come back as lists, and numbers that are not finite as None.

    Under ``"files"`` it also holds fingerprints of the files that settings and findings are named
    after, such as checkpoints and configs (with their base files): where one of the settings has
    another content now, or ``data`` another fingerprint, the findings are refused; a finding of
    such a config is forgotten. Under ``"partial"`` are findings that are not finished.

    Args:
        path: The file; its folder is made.
        settings: What the findings depend on. Findings of other settings are not mixed with
            these.
        overwrite: Forget findings of other settings instead of refusing them, and findings of
            the same settings too.
        wanted: Names of the findings that this run is about; those that an earlier run left are
            counted in a line of output.
        data: Fingerprints of what else the findings depend on, such as a folder of images, by
            what it is called in a sentence.

    Attributes:
        kept (int): How many findings an earlier run left in the file.

    Raises:
        UserError: If the file has other settings, is not one of these, or can't be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False,
                 wanted: Iterable[str] | None = None, data: Mapping[str, str] | None = None
                 ) -> None:
        self.path = path
        self.settings: dict[str, Any] = _plain(dict(settings))
        self._items: dict[str, Any] = {}
        self._partial: dict[str, Any] = {}
        named = list(dict.fromkeys(wanted or ()))
        self._setting_files = {text: found for text in _strings(self.settings)
                               if (found := _fingerprint(text))}
        self._data = dict(data or {})
        # What is wanted has its fingerprint taken before the work: the file may change during it.
        self._item_files = {key: found for key in named if (found := _fingerprint(key))}
        if path.exists() and not overwrite:
            self._read()
        self.kept = len(self._items)
        reused = sum(key in self._items for key in named) if wanted is not None else self.kept
        if reused:
            of = reused if wanted is None else len(named)
            number = str(reused) if wanted is None else f'{reused} of {of}'
            verb, them = ('is', 'it') if reused == 1 else ('are', 'them')
            print(f'{number} result{"s" * (of != 1)} {verb} from an earlier run of {path}; '
                  f'--overwrite measures {them} again', flush=True)
        # Now rather than after the first minutes of work: a folder that can't be written.
        self._write()

    def add(self, key: str, value: Any) -> None:
        """Add a finding, or replace it, and write the file; what was partial of it is dropped.

        Raises:
            UserError: If the file can't be written.
        """
        self._partial.pop(key, None)
        self._items[key] = _plain(value)
        self._remember(key)
        self._write()

    def partial(self, key: str) -> Any:
        """What `add_partial` last got for a finding that is not finished, or None."""
        return self._partial.get(key)

    def add_partial(self, key: str, value: Any) -> None:
        """Keep what there is of a finding so far, and write the file.

        Raises:
            UserError: If the file can't be written.
        """
        self._partial[key] = _plain(value)
        self._remember(key)
        self._write()

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def _remember(self, key: str) -> None:
        if key not in self._item_files and (found := _fingerprint(key)):
            self._item_files[key] = found

    def _read(self) -> None:
        try:
            content = json.loads(self.path.read_text(encoding='utf-8'))
            settings, items = content['settings'], dict(content['items'])
            partial = dict(content.get('partial', {}))
            files = content.get('files', {})
            setting_files = dict(files.get('settings', {}))
            data = dict(files.get('data', {}))
            item_files = dict(files.get('items', {}))
            names = sorted({*settings, *self.settings})
        except OSError as error:
            raise UserError(f'can\'t read {self.path}: {error.strerror}') from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{self.path} holds no results of an analysis: {_ADVICE}') from error
        if not items and not partial:
            return  # a run that failed before it found anything: nothing to mix up
        # First, because settings may differ only as a consequence. Files that are gone are not
        # held against the findings.
        self._check_unchanged(self._setting_files, setting_files)
        for name in names:
            absent = '(not there)'
            earlier, now = settings.get(name, absent), self.settings.get(name, absent)
            if earlier != now:
                raise UserError(f'{self.path} has results of other settings ({name}: {earlier} '
                                f'there, {now} here): {_ADVICE}')
        # Last, because other settings may choose other data.
        self._check_unchanged(self._data, data)
        for key in dict.fromkeys([*items, *partial]):
            now = self._item_files.get(key) or _fingerprint(key)
            if now and now != item_files.get(key):
                print(f'{key} is not what it was when {self.path} was written, so it is measured '
                      'again', flush=True)
                items.pop(key, None)
                partial.pop(key, None)
                item_files.pop(key, None)
        self._items, self._partial = items, partial
        self._item_files = {**item_files, **self._item_files}

    def _check_unchanged(self, now: Mapping[str, str], earlier: Mapping[str, str]) -> None:
        for name, found in now.items():
            if earlier.get(name, found) != found:
                raise UserError(f'{name} is not what it was when {self.path} was written: '
                                f'{_ADVICE}')

    def _write(self) -> None:
        content: dict[str, Any] = {'settings': self.settings, 'items': self._items}
        item_files = {key: found for key, found in self._item_files.items()
                      if key in self._items or key in self._partial}
        if self._setting_files or item_files or self._data:
            content['files'] = {'settings': self._setting_files, 'items': item_files,
                                'data': self._data}
        if self._partial:
            content['partial'] = self._partial
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


def _strings(value: Any) -> Iterator[str]:
    """All strings among nested values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _fingerprint(name: str) -> str | None:
    """Tells contents of a file apart; None where ``name`` names none.

    A form behind a colon, as in ``config.py:deploy``, is no part of the path.
    """
    for path in (name, name.rpartition(':')[0]):
        # os.path, since pathlib fails for texts that are too long for a path.
        if os.path.splitext(path)[1] and os.path.isfile(path):
            return _config_fingerprint(path) if path.endswith(_CONFIGS) else _content(path)
    return None


def _config_fingerprint(path: str) -> str:
    """Of what a config says after its base files are read, and of the weights that it names."""
    from mmengine.config import Config  # only here: many settings name no config

    try:
        values = Config.fromfile(path, import_custom_modules=False).to_dict()
    except Exception:  # whatever is wrong with it, the analysis tells when it loads the model
        return _content(path)
    text = json.dumps(values, sort_keys=True, default=str)
    weights = sorted({_content(named) for named in _strings(values)
                      if named.endswith(_WEIGHTS) and os.path.isfile(named)})
    return ' '.join([blake2b(text.encode(), digest_size=_DIGEST).hexdigest(), *weights])


def _content(path: str) -> str:
    # No CRC: a checkpoint is a zip file that has its own, and with that all have the same.
    digest = blake2b(digest_size=_DIGEST)
    try:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f'can\'t read {path}: {error.strerror}') from error
    return digest.hexdigest()
