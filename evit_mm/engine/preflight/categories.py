"""The categories of a COCO annotation file, compared with the classes of a config."""

import json
import mmap
from collections.abc import Sequence
from pathlib import Path

from ...data.check.findings import printable
from ...errors import ConfigError, UserError

__all__ = ['check_categories', 'compare_categories']


def check_categories(path: Path, classes: Sequence[str], ignore_unknown: bool = False) -> None:
    """Check that the categories of a COCO file are the classes of the config.

    The whole file is not read for that.

    Args:
        path: The annotation file.
        classes: The dataset's classes.
        ignore_unknown: Accept categories in the file that the config does not have.

    Raises:
        ConfigError: If names or order differ.
        UserError: If the file is not a COCO annotation file.
    """
    try:
        names = [str(category['name']) for category in _read_categories(path)]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f'{path} is not a COCO annotation file, or is truncated: {reason}'
                        ) from error
    known = [name for name in names if name in classes] if ignore_unknown else names
    if len(set(known)) == len(known) or set(known) != set(classes):
        compare_categories(path, names, classes, ignore_unknown)
    # Otherwise `annotations` does so, as it leaves out second categories of one name.


def compare_categories(path: Path, names: Sequence[str], classes: Sequence[str],
                       ignore_unknown: bool = False) -> None:
    """Check that categories are the classes of the config, in the same order.

    MMDetection numbers labels in the file's order and ignores categories that the config does not
    have, so that other names or another order silently give wrong labels.

    Args:
        path: The annotation file, for the message.
        names: The names of its categories.
        classes: As in `check_categories`.
        ignore_unknown: As in `check_categories`.

    Raises:
        ConfigError: If names or order differ.
    """
    fix = (f'set metainfo=dict(classes={tuple(names)!r}) in the config\'s datasets and '
           f'num_classes={len(names)} in its heads')
    unknown = [name for name in names if name not in classes]
    absent = [name for name in classes if name not in names]
    if unknown and not ignore_unknown:
        fault = (f'{path} has categories that the config does not have: '
                 f'{", ".join(unknown[:5])}{" ..." if len(unknown) > 5 else ""}; '
                 f'{fix}, or pass --ignore-unknown-categories to train without them')
    elif absent:
        fault = (f'the config\'s classes {absent[:5]} are not among the categories of {path}, '
                 f'which would shift the labels of the others; {fix}')
    elif [name for name in names if name in classes] != list(classes):
        fault = (f'the categories of {path} are in another order than the config\'s classes, '
                 f'which would mix up the labels; {fix}')
    else:
        return
    raise ConfigError(printable(fault))


def _read_categories(path: Path) -> list[dict]:
    """Return the categories of a COCO file without parsing its megabytes of annotations."""
    if path.stat().st_size == 0:
        raise ValueError('it is empty')
    with path.open('rb') as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b'"categories"')
        while start >= 0:
            text = content[start + len(b'"categories"'):start + 4_000_000].decode(errors='replace')
            after_colon = text.lstrip()
            if after_colon.startswith(':'):
                categories, _ = json.JSONDecoder().raw_decode(after_colon[1:].lstrip())
                if isinstance(categories, list):
                    return categories
            start = content.find(b'"categories"', start + 1)
    raise ValueError('it has no list of categories')
