"""Fill a folder with a dataset; find it filled; never touch files of someone else."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ...errors import UserError
from .files import read_json, write_json
from .settings import FORMAT, GENERATOR, Settings

__all__ = ['fill']

_MANIFEST: Final = 'shapes.json'  # says what a finished folder holds
_MARKER: Final = 'shapes.partial'  # says what may be lying in an unfinished one


def fill(
    root: Path,
    settings: Settings,
    classes: Sequence[str],
    write: Callable[[], dict[str, int]],
    *,
    overwrite: bool,
) -> tuple[dict[str, int], bool]:
    """Make a folder hold exactly this dataset, besides files of someone else.

    Args:
        root: The folder; made if missing.
        settings: The dataset.
        classes: Names of its classes, for the manifest.
        write: Writes the files of `settings`, whose folders are there by then, and returns the
            annotations per split. Not called if the dataset is there already.
        overwrite: Replace a dataset of other settings, or write beside files of someone else.

    Returns:
        Annotations per split, and whether the dataset was there already.

    Raises:
        UserError: If the folder can't or must not be written.
    """
    try:
        _check_is_folder(root)
        manifest = _read_own(root / _MANIFEST)
        found = Settings.parse(manifest.get('settings'))
        same = found == settings and manifest.get('format') == FORMAT
        if same and all((root / name).is_file() for name in settings.files()):
            (root / _MARKER).unlink(missing_ok=True)
            return dict(manifest.get('annotations', {})), True
        if found and not same and not overwrite:
            raise UserError(f'{root} holds a shapes dataset of other settings: choose another '
                            'folder, or replace it with overwrite (--overwrite)')
        earlier = [found] if found else _interrupted(root)
        _check_replaces_only_own(root, settings, earlier, overwrite)
        annotations = _replace(root, settings, earlier, classes, write)
    except OSError as error:
        place = error.filename or root
        raise UserError(f'cannot write {place}: {error.strerror or error}; choose another folder '
                        'or make this one writable') from error
    return annotations, False


def _check_is_folder(root: Path) -> None:
    for folder in (root, *root.parents):
        if folder.is_dir():
            return
        if os.path.lexists(folder):
            raise UserError(f'{folder} is a file, but a folder is needed there: choose another '
                            'path or move the file away')


def _read_own(path: Path) -> dict[str, Any]:
    """Content of a manifest or marker; empty unless this generator wrote it."""
    content = read_json(path)
    return content if content.get('generator') == GENERATOR else {}


def _interrupted(root: Path) -> list[Settings]:
    """The datasets whose files an interrupted run may have left."""
    listed = _read_own(root / _MARKER).get('settings')
    parsed = [Settings.parse(one) for one in listed] if isinstance(listed, list) else []
    return [one for one in parsed if one is not None]


def _check_replaces_only_own(
    root: Path, settings: Settings, earlier: Sequence[Settings], overwrite: bool
) -> None:
    if not earlier and not overwrite and root.exists() and any(root.iterdir()):
        raise UserError(f'{root} is not empty and was not made by this generator: choose another '
                        'folder, or write into it all the same with overwrite (--overwrite)')
    own = {name for one in earlier for name in (_MANIFEST, _MARKER, *one.files())}
    for name in (_MANIFEST, _MARKER, *settings.files()):
        if name not in own and os.path.lexists(root / name):
            raise UserError(f'{root / name} was not made by this generator and would be '
                            'replaced: choose another folder or move it away')


def _replace(
    root: Path,
    settings: Settings,
    earlier: Sequence[Settings],
    classes: Sequence[str],
    write: Callable[[], dict[str, int]],
) -> dict[str, int]:
    """Write a dataset in the place of earlier ones; returns the annotations per split."""
    root.mkdir(parents=True, exist_ok=True)
    # The marker names all that may be lying around until the manifest is written, so that an
    # interrupted run can be cleared without guessing.
    write_json(root / _MARKER, {
        'generator': GENERATOR,
        'settings': [asdict(one) for one in (settings, *earlier)],
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
    """Delete the files of earlier datasets that the coming one does not replace."""
    kept = set(keep.files())
    for one in earlier:
        names = set(one.files())
        for name in names - kept:
            (root / name).unlink(missing_ok=True)
        folders = {folder for name in names for folder in Path(name).parents if folder != Path()}
        for folder in sorted(folders, reverse=True):  # subfolders first
            if (root / folder).is_dir() and not any((root / folder).iterdir()):
                (root / folder).rmdir()
