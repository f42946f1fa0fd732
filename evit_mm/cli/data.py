"""The command ``evit-mm data``, and tools/prepare_data.py."""

import argparse
from typing import Any

from .common import ConfigOptions
from .data_check import add_check
from .data_convert import add_convert

DESCRIPTION = 'Prepare, check or convert a dataset, or look at one.'

_LAYOUTS = ('coco', 'ade')
_CONFIGS = {'coco': 'retinanet_evit_m0_shapes', 'ade': 'upernet_evit_m0_shapes'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be done, and the flags of each."""
    datasets = parser.add_subparsers(required=True, metavar='ACTION')
    add_check(datasets)
    add_convert(datasets)
    shapes = datasets.add_parser(
        'shapes', help='draw a small synthetic dataset (offline, under a minute)',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Draw a small synthetic dataset: OUT/coco for detection, OUT/ade for '
                    'segmentation. The same options give the same files, byte for byte.')
    shapes.add_argument('--out', default='data/shapes', metavar='FOLDER',
                        help='folder that gets the folders coco/ and ade/')
    shapes.add_argument('--layout', choices=(*_LAYOUTS, 'both'), default='both',
                        help='which of the two to write')
    shapes.add_argument('--num-train', type=int, default=400, metavar='N',
                        help='number of training images in each')
    shapes.add_argument('--num-val', type=int, default=100, metavar='N',
                        help='number of validation images in each')
    shapes.add_argument('--size', type=int, default=192, metavar='PX',
                        help='side around which the heights and widths of the images vary')
    shapes.add_argument('--seed', type=int, default=0, metavar='N',
                        help='seed of all random numbers; another seed gives other images')
    shapes.add_argument('--overwrite', action='store_true',
                        help='replace a shapes dataset of other options, or write into a folder '
                             'that contains other files (which are left as they are)')
    shapes.set_defaults(prepare=_generate_shapes)
    _add_browse(datasets)


def _add_browse(datasets: Any) -> None:
    browse = datasets.add_parser(
        'browse', help='draw what the augmentations feed the model',
        description='Draw images with their boxes, masks or label maps as the training pipeline of '
                    'a config makes them, on pages of twelve.')
    browse.add_argument('config', help='config file, or the name of a packaged config')
    browse.add_argument('--out', default='browse', metavar='DIR',
                        help='folder of the pages (browse)')
    browse.add_argument('-n', '--count', type=int, default=24, metavar='N',
                        help='number of images, chosen at random (24)')
    browse.add_argument('--split', choices=['train', 'val', 'test'], default='train',
                        help='the dataset to look at (train)')
    browse.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of every dataset')
    browse.add_argument('--seed', type=int, default=0, metavar='N',
                        help='seed of the choice and of the augmentations (0)')
    browse.add_argument('--ignore-unknown-categories', action='store_true',
                        help='accept annotation files with categories that the config does not '
                        'have')
    browse.add_argument('--skip-invalid-objects', action='store_true',
                        help='go on without the objects of annotation files that can\'t be used')
    browse.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of the config')
    browse.set_defaults(prepare=_browse)


def run(args: argparse.Namespace) -> None:
    """Prepare, check or convert a dataset, and print a summary of it.

    Raises:
        UserError: If a number is out of range, the data have a fault, or the folder can't or must
            not be written.
    """
    args.prepare(args)


def _generate_shapes(args: argparse.Namespace) -> None:
    import shlex
    from pathlib import Path

    from ..data import generate_ade, generate_coco

    generators = {'coco': generate_coco, 'ade': generate_ade}
    for layout in _LAYOUTS if args.layout == 'both' else [args.layout]:
        dataset = generators[layout](
            Path(args.out) / layout, num_train=args.num_train, num_val=args.num_val,
            image_size=(args.size, args.size), seed=args.seed, overwrite=args.overwrite)
        root = dataset.root.absolute()
        print(f'{layout}: {root} ' + ('(up to date)' if dataset.reused else '(generated)'))
        for split, count in dataset.num_images.items():
            annotations = dataset.num_annotations.get(split)
            print(f'  {split}: {count} images'
                  + ('' if annotations is None else f', {annotations} annotations'))
        print(f'  classes: {", ".join(dataset.classes)}')
        print(f'  next: evit-mm train {_CONFIGS[layout]} '
              f'--data-root {shlex.quote(str(root))}')


def _browse(args: argparse.Namespace) -> None:
    from ..engine.browse import browse

    pages = browse(args.config, out=args.out, count=args.count, split=args.split,
                   data_root=args.data_root, seed=args.seed, cfg_options=args.cfg_options,
                   ignore_unknown_categories=args.ignore_unknown_categories,
                   skip_invalid_objects=args.skip_invalid_objects)
    for page in pages:
        print(page)
