"""Folders of the splits of a dataset."""

from pathlib import Path

from ...errors import UserError

__all__ = ['split_folders']

_NAMES = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}


def split_folders(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the folders that hold the annotation files of each split.

    Args:
        folder: The folder of the dataset.
        suffix: That of its annotation files, such as ``'.xml'``.

    Returns:
        dict: Folders by split; the folder itself as ``'train'`` where it has no such subfolders.

    Raises:
        UserError: If there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise UserError(f'no such folder: {folder}')
    found = {split: folder / name for split, names in _NAMES.items() for name in names
             if any((folder / name).glob(f'*{suffix}'))}
    if any(folder.glob(f'*{suffix}')):
        if found:
            raise UserError(f'{folder} has {suffix} files itself and in {", ".join(found)}: '
                            'convert one folder at a time')
        return {'train': folder}
    if not found:
        raise UserError(f'{folder} has no {suffix} files, nor have train, val and test in it')
    return found
