"""The folder in which the images of an annotation file are."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

__all__ = ['base_name', 'find_image_folder']

_SAMPLE = 20  # images that are looked for in each folder
# Where exports put the images of a split, from its annotation file or the folder above it.
_FOLDERS = {
    'train': ('train', 'train2017', 'images/train', 'train/images', 'images/train2017', 'images'),
    'val': ('val', 'valid', 'validation', 'val2017', 'images/val', 'images/valid', 'val/images',
            'valid/images', 'images/val2017', 'test', 'images/test', 'test/images', 'images',
            'train', 'train2017', 'images/train', 'train/images'),
}


def find_image_folder(file: Path, names: Sequence[str], split: str, folder: Path | None = None,
                      flag: str = '--images') -> tuple[Path, bool]:
    """Find the folder that the file names in an annotation file start from.

    That is the folder of the file itself, or one that exports usually have next to it: the one
    that has most of the first images, or the first of several.

    Args:
        file: The annotation file.
        names: Its file names.
        split: ``'train'``, or any other name for validation and test.
        folder: Look only there, and in folders below.
        flag: What names ``folder``, for the message.

    Returns:
        The folder, and whether the images are there under their base names only, without the
        folders of another machine.

    Raises:
        UserError: If no folder has one of the images.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f'no such folder: {folder}; {flag} names the folder of the images')
    tops = [folder] if folder else [file.parent, file.parent.parent]
    subfolders = ('', *_FOLDERS['train' if split == 'train' else 'val'])
    folders = [top / sub for top in tops for sub in subfolders]
    sample = names[:_SAMPLE]
    for shortened, wanted in ((False, sample), (True, [base_name(name) for name in sample])):
        counts = [sum((place / name).is_file() for name in wanted) for place in folders]
        if max(counts):
            return folders[counts.index(max(counts))], shortened
    raise UserError(f'{file}: no image such as {names[0]} was found in {tops[0]} or the usual '
                    f'folders {"in" if folder else "around"} it; pass {flag} with the folder that '
                    'the file names start from')


def base_name(name: str) -> str:
    """Return the last part of a path of any system."""
    return name.replace('\\', '/').rpartition('/')[2]
