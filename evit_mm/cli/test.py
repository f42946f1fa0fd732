"""The command `test`."""

import argparse

from .training import add_acceleration_flags, add_common_flags

DESCRIPTION = 'Test a detector or segmentor.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    add_common_flags(parser, work_dir='where logs and metrics go')
    parser.add_argument('--out', metavar='FILE',
                        help='store predictions: a .pkl file for detection, a folder for '
                        'segmentation')
    parser.add_argument('--show-dir', metavar='DIR',
                        help='write pictures of predictions beside the truth')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--fast', action='store_true',
                        help='the measured best of the flags below that keep float32, for the '
                        'device at hand')
    parser.add_argument('--deploy', action='store_true',
                        help='fold BN and all else that can be folded, after loading')
    add_acceleration_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..engine import test

    test(args)
