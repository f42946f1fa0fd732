"""The flags of tools/prepare_data.py."""

import argparse
from pathlib import Path

DESCRIPTION = (
    'Prepare a dataset for training and evaluation.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The datasets that tools/prepare_data.py prepares, and the flags of each."""
    datasets = parser.add_subparsers(required=True, metavar='DATASET')
    shapes = datasets.add_parser(
        'shapes', help='draw a small synthetic dataset (offline, under a minute)',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Draw a small synthetic dataset: <out>/coco for detection, <out>/ade for '
                    'segmentation. The same options give the same files, byte for byte.')
    shapes.add_argument('--out', type=Path, default=Path('data/shapes'), metavar='FOLDER',
                        help='where the folders coco/ and ade/ go')
    shapes.add_argument('--layout', choices=('coco', 'ade', 'both'), default='both',
                        help='which of them to write')
    shapes.add_argument('--num-train', type=int, default=400, metavar='N',
                        help='training images of each')
    shapes.add_argument('--num-val', type=int, default=100, metavar='N',
                        help='validation images of each')
    shapes.add_argument('--size', type=int, default=192, metavar='PX',
                        help='side around which the heights and widths of the images vary')
    shapes.add_argument('--seed', type=int, default=0, metavar='N',
                        help='another seed, another dataset')
    shapes.add_argument('--overwrite', action='store_true',
                        help='replace a shapes dataset of other options, or write into a folder '
                             'that holds other files (which stay untouched)')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..data.prepare import prepare

    prepare(args)
