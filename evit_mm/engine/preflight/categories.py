"""The categories of COCO's annotation files against the classes of a config."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError, UserError

__all__ = ['check_categories']


def check_categories(path: Path, classes: Sequence[str], ignore_unknown: bool = False) -> None:
    """Check that the categories of a COCO file are the classes that the config knows.

    MMDetection numbers labels by the file's order and passes over categories that it does not
    know, so a difference in names or order gives wrong labels without a word.

    Args:
        path: The annotation file.
        classes: The dataset's classes.
        ignore_unknown: Let the file have categories that the config does not know.

    Raises:
        ConfigError: If names or order differ.
        UserError: If the file is not a COCO annotation file.
    """
    try:
        names = [str(category['name']) for category in _read_categories(path)]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f'{path} is not a COCO annotation file, or it is cut off: {reason}'
                        ) from error
    mend = (f'set metainfo=dict(classes={tuple(names)!r}) in the config\'s datasets and '
            f'num_classes={len(names)} in its heads')
    unknown = [name for name in names if name not in classes]
    if unknown and ignore_unknown:
        names = [name for name in names if name in classes]
    elif unknown:
        raise ConfigError(f'{path} has categories that the config does not know: '
                          f'{", ".join(unknown[:5])}{" ..." if len(unknown) > 5 else ""}; '
                          f'{mend}, or pass --ignore-unknown-categories to train without them')
    absent = [name for name in classes if name not in names]
    if absent:
        raise ConfigError(f'the config\'s classes {absent[:5]} are not among the categories of '
                          f'{path}, which would shift the labels of the others; {mend}')
    if names != list(classes):
        raise ConfigError(f'the categories of {path} stand in another order than the config\'s '
                          f'classes, which would mix up the labels; {mend}')


def _read_categories(path: Path) -> list[dict]:
    """The categories of a COCO file without reading its hundreds of megabytes of annotations."""
    if path.stat().st_size == 0:
        raise ValueError('it is empty')
    with path.open('rb') as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b'"categories"')
        while start >= 0:
            text = content[start + len(b'"categories"'):start + 4_000_000].decode(errors='replace')
            after_colon = text.lstrip()
            if after_colon.startswith(':'):
                found, _ = json.JSONDecoder().raw_decode(after_colon[1:].lstrip())
                if isinstance(found, list):
                    return found
            start = content.find(b'"categories"', start + 1)
    raise ValueError('it has no list of categories')
