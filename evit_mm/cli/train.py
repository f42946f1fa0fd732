"""The command `train`."""

import argparse

from .training import add_acceleration_flags, add_common_flags

DESCRIPTION = 'Train a detector or segmentor.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument('config', help='config file')
    add_common_flags(parser, work_dir='where logs and checkpoints go')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='PATH',
                        help='resume from PATH, or from the latest checkpoint of the work dir')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument('--from-scratch', action='store_true',
                        help='random weights, and BN that learns its statistics')
    add_acceleration_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..engine import train

    train(args)
