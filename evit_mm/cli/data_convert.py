"""The command ``evit-mm data convert``."""

import argparse
from typing import Any

__all__ = ['add_convert']

# Those of `evit_mm.data.convert`, which takes a second to import.
_SOURCES = ('yolo', 'voc', 'labelme', 'coco')
_TARGETS = ('coco', 'yolo', 'masks')


def add_convert(datasets: Any) -> None:
    """Add the command and its flags to the subparsers of ``evit-mm data``."""
    convert = datasets.add_parser(
        'convert', help='convert annotations between formats',
        description='Convert the annotations of a dataset. Images stay where they are, unless '
                    '--copy-images is passed.')
    convert.add_argument('source', metavar='IN',
                         help='data.yaml of YOLO\'s layout, a COCO annotation file, or the folder '
                         'of a VOC or LabelMe dataset')
    convert.add_argument('--from', dest='source_format', choices=_SOURCES, required=True,
                         help='format of IN')
    convert.add_argument('--to', dest='target_format', choices=_TARGETS, default='coco',
                         help='format to write (default: coco)')
    convert.add_argument('--out', required=True, metavar='DIR', help='a new or empty folder')
    convert.add_argument('--images', metavar='DIR',
                         help='folder of the images of a COCO file (default: looked for around it)')
    convert.add_argument('--copy-images', action='store_true',
                         help='copy the images to DIR/images')
    convert.add_argument('--skip-invalid-objects', action='store_true',
                         help='go on without the objects of a COCO file that can\'t be used')
    convert.set_defaults(prepare=_convert)


def _convert(args: argparse.Namespace) -> None:
    import shlex

    from ..data.convert import convert_dataset

    written = convert_dataset(
        args.source, args.out, source_format=args.source_format, target_format=args.target_format,
        images=args.images, copy_images=args.copy_images,
        skip_invalid_objects=args.skip_invalid_objects)
    for split, converted in written.items():
        for note in converted.notes:
            print(note)
        print(f'{split}: {converted.summary}')
        print(f'  written to {converted.path}, images in {converted.images}')
    if args.target_format != 'coco':
        return
    command = ['evit-mm', 'train', 'retinanet_evit_m0_coco']
    for split, images in (('train', '--images'), ('val', '--val-images')):
        if split in written:
            command += [f'--{split}-ann', str(written[split].path), images,
                        str(written[split].images)]
    print(f'next: {shlex.join(command)}')
