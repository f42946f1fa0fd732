"""Prepare a data set for training and evaluation.

    python tools/prepare_data.py shapes --out data/shapes

`shapes` draws a small one from a seed (nothing is downloaded): `<out>/coco` in COCO's layout
for detection, `<out>/ade` in ADE20K's layout for segmentation.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evit_mm.data.shapes import PreparedData, generate_ade, generate_coco
from evit_mm.errors import UserError

_NEXT_STEPS = {
    'coco': 'use it in an MMDetection config: data_root={root!r}, metainfo=dict(classes={classes})',
    'ade': 'use it in an MMSegmentation config: data_root={root!r}, reduce_zero_label=True '
           '(ADE20KDataset, its 150 classes)',
}


def main() -> int:
    """Run the chosen subcommand; returns the exit code."""
    args = _parser().parse_args()
    try:
        args.run(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command starts again', file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Prepare a data set for training and evaluation.')
    commands = parser.add_subparsers(required=True, metavar='DATASET')
    shapes = commands.add_parser(
        'shapes', help='draw a small synthetic data set (offline, under a minute)',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Draw a small synthetic data set: <out>/coco for detection, <out>/ade for '
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
                        help='another seed, another data set')
    shapes.add_argument('--overwrite', action='store_true',
                        help='replace a shapes data set of other options, or write into a folder '
                             'that holds other files (which stay untouched)')
    shapes.set_defaults(run=_run_shapes)
    return parser


def _run_shapes(args: argparse.Namespace) -> None:
    generators = {'coco': generate_coco, 'ade': generate_ade}
    layouts = list(generators) if args.layout == 'both' else [args.layout]
    for layout in layouts:
        data = generators[layout](
            args.out / layout, num_train=args.num_train, num_val=args.num_val,
            image_size=(args.size, args.size), seed=args.seed, overwrite=args.overwrite)
        _print_shapes(data)


def _print_shapes(data: PreparedData) -> None:
    root = str(data.root.absolute())
    print(f'{data.layout}: {root} ' + ('(was there already)' if data.reused else '(generated)'))
    for split, images in data.images.items():
        found = f', {data.annotations[split]} annotations' if data.annotations else ''
        print(f'  {split}: {images} images{found}')
    print(f'  classes: {", ".join(data.classes)}')
    print(f'  next: {_NEXT_STEPS[data.layout].format(root=root, classes=data.classes)}')


if __name__ == '__main__':
    sys.exit(main())
