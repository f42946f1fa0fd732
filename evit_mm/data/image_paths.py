"""Places of images below the folder of their dataset, under which outputs are written too."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ['common_folder', 'path_below']


def common_folder(datasets: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the folder that contains the images of all datasets; None if it is not on a disk.

    Args:
        datasets: Configs of datasets that read files.
    """
    folders = []
    for dataset in datasets:
        prefix = dataset.get('data_prefix') or {}
        folder = os.path.join(dataset.get('data_root') or '',
                              prefix.get('img') or prefix.get('img_path') or '')
        if '://' in folder:
            return None
        folders.append(os.path.abspath(folder))
    return os.path.commonpath(folders) if folders else None


def path_below(path: str, folder: str | None) -> str:
    """Return the path of an image relative to a folder, so that equal names stay apart.

    An image outside of the folder keeps its whole path, without the leading slash.

    Args:
        path: The image.
        folder: The folder; None gives the name of the file alone.
    """
    if folder is None or '://' in path:
        return os.path.basename(path)
    relative = os.path.relpath(path, folder)
    if relative.split(os.sep)[0] == os.pardir:
        return os.path.splitdrive(os.path.abspath(path))[1].lstrip(os.sep)
    return relative
