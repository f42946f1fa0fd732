"""Images and their label maps, found by name in two folders."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from ..errors import UserError
from .check.findings import shorten

__all__ = ['IMAGE_SUFFIXES', 'LABEL_MAP_SUFFIXES', 'label_map_ending', 'pair_files',
           'visible_files']

IMAGE_SUFFIXES = ('.bmp', '.jfif', '.jpe', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif',
                  '.tiff', '.webp')
LABEL_MAP_SUFFIXES = (*IMAGE_SUFFIXES, '.gif')


def pair_files(images: str, label_maps: str | None, *,
               image_suffixes: Sequence[str] = IMAGE_SUFFIXES,
               label_map_suffixes: Sequence[str] = LABEL_MAP_SUFFIXES,
               names: Sequence[str] | None = None) -> list[tuple[str, str | None]]:
    """Return the images in a folder and its subfolders, each with its label map.

    The two have the same name from their folders on, up to their suffixes. Suffixes are compared
    without case. Hidden files and files of other suffixes don't count.

    Args:
        images: Folder of the images.
        label_maps: Folder of the label maps; None for images without.
        image_suffixes: Endings of the images' names, such as ``'.jpg'``.
        label_map_suffixes: Endings of the label maps' names, such as ``'_mask.png'``.
        names: Images to return, with or without suffix; None returns all.

    Returns:
        list: Paths of images and label maps, in the order of ``names`` or of the images' paths.

    Raises:
        UserError: If a file has no partner, or a name is not unique.
    """
    in_one_folder = label_maps is not None and _is_same(images, label_maps)
    if in_one_folder and {*image_suffixes} & {*label_map_suffixes}:
        raise UserError(f'images and label maps are both in {images}, and can\'t be told apart: '
                        'set img_suffix and seg_map_suffix of the dataset, such as \'.jpg\' and '
                        '\'_mask.png\'')
    other = label_map_suffixes if in_one_folder else ()
    found = _by_stem(images, image_suffixes, other, without=label_maps)
    if not found:
        raise UserError(f'no images in {images}: no file there ends in '
                        f'{", ".join(image_suffixes)}')
    if label_maps is None:
        partners: dict[str, str] = {}
    else:
        other = image_suffixes if in_one_folder else ()
        partners = _by_stem(label_maps, label_map_suffixes, other, without=images)
    stems = list(found) if names is None else [
        _stem_of(name, found, images, image_suffixes) for name in names]
    if label_maps is not None:
        _check_partners(images, label_maps, found, partners, stems, label_map_suffixes,
                        complete=names is None)
    pairs = [(os.path.join(images, found[stem]),
              os.path.join(label_maps, partners[stem]) if label_maps is not None else None)
             for stem in stems]
    return sorted(pairs) if names is None else pairs  # type: ignore[type-var]


def label_map_ending(images: str, label_maps: str) -> str | None:
    """Return what the names of all label maps have after the names of their images.

    Args:
        images: Folder of the images.
        label_maps: Folder of the label maps.

    Returns:
        str: Such as ``'_mask.png'``; None if there is no such common ending.
    """
    stems = {os.path.splitext(file)[0] for file in visible_files(images, IMAGE_SUFFIXES)}
    files = sorted(visible_files(label_maps, LABEL_MAP_SUFFIXES))
    endings = {files[0][len(stem):] for stem in stems if files[0].startswith(stem)} \
        if files else set()
    return next((ending for ending in sorted(endings, key=len) if ending and all(
        file.endswith(ending) and file[:-len(ending)] in stems for file in files)), None)


def visible_files(folder: str, suffixes: Sequence[str] = (), without: str | None = None
                  ) -> Iterator[str]:
    """Yield the files of a folder and its subfolders that are not hidden, relative to it.

    Args:
        folder: The folder.
        suffixes: Endings of the files to yield, compared without case; all files by default.
        without: A subfolder that is left out.
    """
    endings = tuple(suffix.lower() for suffix in suffixes)
    for path, subfolders, names in os.walk(folder, followlinks=True):
        if without is not None:
            subfolders[:] = [name for name in subfolders
                             if not _is_same(os.path.join(path, name), without)]
        for name in names:
            if not name.startswith('.') and (not endings or name.lower().endswith(endings)):
                yield PurePath(os.path.relpath(os.path.join(path, name), folder)).as_posix()


def _by_stem(folder: str, suffixes: Sequence[str], other_suffixes: Sequence[str],
             without: str | None) -> dict[str, str]:
    """Return the files of a folder by their names without suffix.

    Args:
        folder: The folder.
        suffixes: Endings of the files.
        other_suffixes: Endings of other files in this folder; the longest one of all decides.
        without: A subfolder that is left out.

    Raises:
        UserError: If two files have the same name without suffix.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for file in visible_files(folder, suffixes, without):
        suffix = _suffix_of(file, [*suffixes, *other_suffixes])
        if suffix in {ending.lower() for ending in suffixes}:
            files[file[:-len(suffix)]].append(file)
    same = [sorted(several) for several in files.values() if len(several) > 1]
    if same:
        others = f' ({len(same) - 1} more such names)' if len(same) > 1 else ''
        raise UserError(f'{" and ".join(same[0])} in {folder} have the same name without '
                        f'suffix{others}, which tells images and label maps that belong together: '
                        'rename or remove one')
    return {stem: file for stem, (file,) in sorted(files.items())}


def _suffix_of(file: str, suffixes: Sequence[str]) -> str:
    """Return the longest of some suffixes that a file has, in lower case; '' if it has none."""
    return max((suffix.lower() for suffix in suffixes if file.lower().endswith(suffix.lower())),
               key=len, default='')


def _stem_of(name: str, found: dict[str, str], images: str, suffixes: Sequence[str]) -> str:
    """Return the stem of an image that a list names.

    Raises:
        UserError: If there is no such image.
    """
    name = PurePath(name).as_posix()
    suffix = _suffix_of(name, suffixes)
    for stem in (name, name[:-len(suffix)] if suffix else name):
        if stem in found:
            return stem
    raise UserError(f'the list of images has {name}, but there is no such image in {images}')


def _check_partners(images: str, label_maps: str, found: dict[str, str], partners: dict[str, str],
                    stems: Sequence[str], suffixes: Sequence[str], complete: bool) -> None:
    """Check that each image has a label map, and, unless only some are used, the reverse.

    Raises:
        UserError: If a partner is missing.
    """
    alone = [found[stem] for stem in stems if stem not in partners]
    if alone:
        ending = label_map_ending(images, label_maps)
        if ending and suffixes is LABEL_MAP_SUFFIXES:
            hint = f'the label maps end in {ending!r}: set seg_map_suffix={ending!r} in the dataset'
        else:
            hint = 'add them, remove the images, or list the images to use in ann_file'
        raise UserError(f'{len(alone)} of the {len(stems)} images in {images} have no label map of '
                        f'the same name in {label_maps}: {shorten(alone)}; {hint}')
    superfluous = [file for stem, file in partners.items() if stem not in found]
    if complete and superfluous:
        same_stem = {os.path.splitext(file)[0]: file for file in visible_files(images)}
        unread = [same_stem[stem] for stem in (os.path.splitext(file)[0] for file in superfluous)
                  if stem in same_stem]
        cause = f' ({shorten(unread)} there has another suffix than images)' if unread else ''
        raise UserError(f'{len(superfluous)} of the {len(partners)} label maps in {label_maps} '
                        f'have no image of the same name in {images}: {shorten(superfluous)}'
                        f'{cause}; add the images, remove the label maps, or list the images to '
                        'use in ann_file')


def _is_same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
