"""Flags that train and test share."""

import argparse

from .common import ConfigOptions

__all__ = ['add_acceleration_arguments', 'add_label_map_arguments', 'add_own_data_arguments',
           'add_run_arguments']


def add_run_arguments(parser: argparse.ArgumentParser, *, work_dir_help: str) -> None:
    """Add the flags that describe a run."""
    parser.add_argument('--work-dir', metavar='DIR', help=work_dir_help)
    parser.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of every dataset and evaluator')
    parser.add_argument('--image-size', type=int, metavar='N',
                        help='longer side of the images, for configs that follow one image_size, '
                        'such as evit_det_s_coco')
    parser.add_argument('--ignore-unknown-categories', action='store_true',
                        help='accept annotation files with categories that the config does not '
                        'have')
    parser.add_argument('--skip-invalid-objects', action='store_true',
                        help='go on without the objects of annotation files that can\'t be used')
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of the config, such as '
                        'train_dataloader.batch_size=4 or a.b="[1,2]"')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='what started the processes')
    # Launchers pass either spelling.
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)


def add_own_data_arguments(parser: argparse.ArgumentParser, *, training: bool) -> None:
    """Add the flags that put a user's data in the place of the config's."""
    group = parser.add_argument_group('your own data')
    if training:
        group.add_argument('--train-ann', metavar='FILE',
                           help='COCO annotation file to train on; classes, heads, schedule and '
                           'batch size are fitted to it')
    group.add_argument('--val-ann', metavar='FILE',
                       help='COCO annotation file to validate on (default: a fifth of the images '
                       'is held out)' if training else 'COCO annotation file to test on')
    group.add_argument('--images', metavar='DIR',
                       help='folder of the images (default: looked for around the annotations or '
                       'the label maps)')
    group.add_argument('--val-images', metavar='DIR',
                       help='folder of the images of --val-ann or --val-masks, if it is another '
                       'one')
    group.add_argument('--data', metavar='FILE',
                       help='data.yaml of YOLO\'s layout, instead of the flags above')


def add_acceleration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that make a model faster, except ``--channels-last``."""
    parser.add_argument('--compile', action='store_true',
                        help='run backbone and neck through torch.compile (on a CPU it needs a '
                        'C++ compiler)')
    parser.add_argument('--bf16', action='store_true',
                        help='compute in bfloat16 by autocast, on CPU or GPU; losses, boxes and '
                        'scores stay in float32')


def add_label_map_arguments(parser: argparse.ArgumentParser, *, training: bool) -> None:
    """Add the flags that put a user's label maps in the place of a segmentation config's data."""
    group = parser.add_argument_group('your own label maps')
    group.add_argument('--masks', metavar='DIR',
                       help='folder of the label maps, or of their subfolders train/ and val/; '
                       'classes and heads are fitted to them')
    if training:
        group.add_argument('--val-masks', metavar='DIR',
                           help='folder of the label maps to validate on (default: a fifth of the '
                           'images is held out)')
    group.add_argument('--classes', metavar='FILE',
                       help='names of the classes in the order of their numbers: one per line, or '
                       'a list in JSON or YAML')
    group.add_argument('--zero-is-unlabelled', action='store_true',
                       help='0 means unlabelled, and 1 is the first class')
    group.add_argument('--mask-values', type=_numbers, metavar='N,N,...',
                       help='the number of each class, if not 0, 1, 2 and so on; 0,255 for masks '
                       'in black and white')


def _numbers(text: str) -> list[int]:
    """Parse numbers with commas between them."""
    try:
        return [int(part) for part in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of numbers such as 0,255'
                                         ) from None
