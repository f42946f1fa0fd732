"""The command ``evit-mm data check``."""

import argparse
import sys
from typing import Any

from .common import ConfigOptions

__all__ = ['add_check']


def add_check(actions: Any) -> None:
    """Add the command and its flags to the sub-commands of ``evit-mm data``."""
    parser = actions.add_parser(
        'check', help='check annotations, images and splits of a dataset',
        description='Check annotations, images and splits: what is wrong, what a run would leave '
                    'out, and what it would learn from. The exit status is 2 if a run would stop.')
    parser.add_argument('config', nargs='?', help='config whose train, val and test data to check')
    parser.add_argument('--coco', nargs='+', metavar='FILE',
                        help='COCO annotation files, such as those of two splits')
    parser.add_argument('--masks', metavar='DIR', help='folder of label maps')
    parser.add_argument('--images', nargs='+', metavar='DIR', default=[],
                        help='folder of the images of --coco or --masks; one for all files, or one '
                        'for each')
    parser.add_argument('--classes', metavar='FILE',
                        help='text file with the name of a class on each line')
    parser.add_argument('--zero-is-unlabelled', action='store_true',
                        help='in label maps, 0 means unlabelled, and 1 is the first class')
    parser.add_argument('--data-root', metavar='DIR', help='data root that replaces the config\'s')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of the config')
    parser.add_argument('--decode', action='store_true',
                        help='decode every image, which finds all damages, but takes longer')
    parser.add_argument('--skip-invalid-objects', action='store_true',
                        help='judge, and repair, without the objects that can\'t be used')
    parser.add_argument('--ignore-unknown-categories', action='store_true',
                        help='accept categories that the config does not have')
    parser.add_argument('--json', metavar='FILE', help='write counts and findings to this file')
    parser.add_argument('--html', metavar='FILE',
                        help='write a page with counts, sizes and labelled pictures')
    parser.add_argument('--repair', metavar='DIR',
                        help='write repaired copies of annotation files into this folder')
    parser.set_defaults(prepare=_check)


def _check(args: argparse.Namespace) -> None:
    """Check what the arguments name.

    Raises:
        UserError: If a run would stop, or the arguments don't fit together.
    """
    from ..data.check import check_dataset
    from ..data.check.page import write_page
    from ..data.check.report import describe_check
    from ..errors import UserError
    from ..files import write_json

    if sum(value is not None for value in (args.config, args.coco, args.masks)) != 1:
        raise UserError('name one dataset to check: a config, --coco FILE, or --masks DIR')
    classes = _read_classes(args.classes) if args.classes else None
    shared = dict(decode=args.decode, skip_invalid=args.skip_invalid_objects,
                  progress=sys.stderr.isatty())
    if args.masks:
        if len(args.images) > 1:
            raise UserError('--masks takes one folder of --images')
        check = check_dataset(masks=args.masks, images=next(iter(args.images), None),
                              classes=classes, zero_is_unlabelled=args.zero_is_unlabelled, **shared)
    elif args.coco:
        check = check_dataset(_coco_sources(args.coco, args.images, classes), **shared)
    else:
        if args.images or args.classes:
            raise UserError('--images and --classes belong to --coco and --masks: a config names '
                            'its own')
        from ..engine.data_check import check_data

        check = check_data(args.config, data_root=args.data_root, cfg_options=args.cfg_options,
                           ignore_unknown_categories=args.ignore_unknown_categories, **shared)
    print(describe_check(check))
    if args.json:
        write_json(args.json, check.as_dict(), indent=2)
    if args.html:
        write_page(check, args.html)
    if args.repair:
        copies = check.write_repaired(args.repair)
        print('\n'.join(f'wrote {path}' for path in copies) or 'nothing to repair')
    if check.stopping:
        raise UserError(f'a run would stop: {check.stopping[0].message}')


def _coco_sources(files: list[str], folders: list[str], classes: list[str] | None
                  ) -> dict[str, Any]:
    from pathlib import Path

    from ..data.check import CocoSource
    from ..errors import UserError

    if len(folders) not in (0, 1, len(files)):
        raise UserError(f'--images has {len(folders)} folders for {len(files)} annotation files: '
                        'name one for all, or one for each')
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f'no such folder: {folder}')
    sources: dict[str, Any] = {}
    for position, file in enumerate(files):
        path = Path(file)
        images = folders[position] if len(folders) > 1 else next(iter(folders), None)
        name = path.stem if path.stem not in sources else file
        sources[name] = CocoSource(path, images, classes)
    return sources


def _read_classes(file: str) -> list[str]:
    from pathlib import Path

    from ..errors import UserError

    try:
        names = [line.strip() for line in Path(file).read_text(encoding='utf-8').splitlines()]
    except FileNotFoundError:
        raise UserError(f'no such file: {file}') from None
    except (OSError, ValueError) as error:
        raise UserError(f'can\'t read {file}: {error}') from error
    names = [name for name in names if name]
    if not names:
        raise UserError(f'{file} has no class: write one name on each line')
    return names
