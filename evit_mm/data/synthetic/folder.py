"""Create, reuse or replace a dataset in a folder, without touching files of others."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ...errors import UserError
from ...files import locked_folder, read_json, write_json
from .settings import FORMAT, GENERATOR, Settings

__all__ = ['ensure_dataset']

_MANIFEST: Final = 'shapes.json'  # describes a finished dataset
_MARKER: Final = 'shapes.partial'  # lists the datasets whose files an unfinished folder may contain


def ensure_dataset(
    root: Path,
    settings: Settings,
    classes: Sequence[str],
    write: Callable[[], dict[str, int]],
    *,
    overwrite: bool,
) -> tuple[dict[str, int], bool]:
    """Make a folder contain exactly this dataset, next to any files of others.

    Args:
        root: The folder; created if missing.
        settings: The settings of the dataset.
        classes: Names of its classes, for the manifest.
        write: Writes the dataset's files into existing folders, and returns the number of
            annotations of each split. It isn't called if the folder already contains the dataset.
        overwrite: Replace a dataset with other settings, or write next to files of others.

    Returns:
        The number of annotations of each split, and whether the dataset was there already.

    Raises:
        UserError: If the folder can't or must not be written.
    """
    try:
        _check_is_folder(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(root, 'generates a dataset in', beside=True):
            return _ensure_alone(root, settings, classes, write, overwrite)
    except OSError as error:
        raise UserError(f'can\'t write {error.filename or root}: '
                        f'{error.strerror or error}') from error


def _ensure_alone(root: Path, settings: Settings, classes: Sequence[str],
                  write: Callable[[], dict[str, int]], overwrite: bool
                  ) -> tuple[dict[str, int], bool]:
    """Do what `ensure_dataset` says, while no other process does so."""
    manifest = _read_own(root / _MANIFEST)
    existing = Settings.parse(manifest.get('settings'))
    same = existing == settings and manifest.get('format') == FORMAT
    if same and all((root / name).is_file() for name in settings.files()):
        (root / _MARKER).unlink(missing_ok=True)
        return dict(manifest.get('annotations', {})), True
    if existing and not same and not overwrite:
        raise UserError(f'{root} contains a shapes dataset with other settings: choose another '
                        'folder, or replace it with overwrite (--overwrite)')
    earlier = [existing] if existing else _interrupted(root)
    _check_replaces_only_own(root, settings, earlier, overwrite)
    annotations = _replace(root, settings, earlier, classes, write)
    return annotations, False


def _check_is_folder(root: Path) -> None:
    for folder in (root, *root.parents):
        if folder.is_dir():
            return
        if os.path.lexists(folder):
            raise UserError(f'can\'t write {root}: {folder} is a file; choose another folder, or '
                            'move the file away')


def _read_own(path: Path) -> dict[str, Any]:
    """Return a manifest or marker; empty unless this generator wrote it."""
    content = read_json(path)
    return content if content.get('generator') == GENERATOR else {}


def _interrupted(root: Path) -> list[Settings]:
    """Return the settings of the datasets that an interrupted run may have left in part."""
    listed = _read_own(root / _MARKER).get('settings')
    parsed = [Settings.parse(value) for value in listed] if isinstance(listed, list) else []
    return [settings for settings in parsed if settings is not None]


def _check_replaces_only_own(
    root: Path, settings: Settings, earlier: Sequence[Settings], overwrite: bool
) -> None:
    if not earlier and not overwrite and root.exists() and any(root.iterdir()):
        raise UserError(f'{root} is not empty and was not made by this generator: choose another '
                        'folder, or write into it anyway with overwrite (--overwrite)')
    own = {name for each in earlier for name in (_MANIFEST, _MARKER, *each.files())}
    for name in (_MANIFEST, _MARKER, *settings.files()):
        if name not in own and os.path.lexists(root / name):
            raise UserError(f'{root / name} was not made by this generator and would be '
                            'replaced: choose another folder, or move it away')


def _replace(
    root: Path,
    settings: Settings,
    earlier: Sequence[Settings],
    classes: Sequence[str],
    write: Callable[[], dict[str, int]],
) -> dict[str, int]:
    """Write a dataset in place of earlier ones; return the number of annotations of each split."""
    root.mkdir(parents=True, exist_ok=True)
    # Until the manifest is written, the marker lists every dataset whose files may be there, so
    # that the next run can clean up after an interruption.
    write_json(root / _MARKER, {
        'generator': GENERATOR,
        'settings': [asdict(each) for each in (settings, *earlier)],
    })
    (root / _MANIFEST).unlink(missing_ok=True)
    _remove_files(root, earlier, keep=settings)
    for folder in {(root / name).parent for name in settings.files()}:
        folder.mkdir(parents=True, exist_ok=True)
    annotations = write()
    write_json(root / _MANIFEST, {
        'generator': GENERATOR,
        'format': FORMAT,
        'settings': asdict(settings),
        'classes': list(classes),
        'annotations': annotations,
    })
    (root / _MARKER).unlink()
    return annotations


def _remove_files(root: Path, earlier: Iterable[Settings], keep: Settings) -> None:
    """Delete the files of earlier datasets that the new one does not replace."""
    kept = set(keep.files())
    for settings in earlier:
        names = set(settings.files())
        for name in names - kept:
            (root / name).unlink(missing_ok=True)
        folders = {folder for name in names for folder in Path(name).parents if folder != Path()}
        for folder in sorted(folders, reverse=True):  # subfolders first
            if (root / folder).is_dir() and not any((root / folder).iterdir()):
                (root / folder).rmdir()
