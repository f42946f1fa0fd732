"""Flags of both training and testing."""

import argparse

from .common import ConfigOptions


def add_acceleration_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--channels-last', action='store_true',
                        help='keep feature maps in the channels-last memory format')
    parser.add_argument('--compile', action='store_true',
                        help='run backbone and neck through torch.compile (on a CPU it needs a '
                        'C++ compiler)')
    parser.add_argument('--bf16', action='store_true',
                        help='compute in bfloat16 by autocast, on CPU or GPU; losses, boxes and '
                        'scores stay in float32')


def add_common_flags(parser: argparse.ArgumentParser, *, work_dir: str) -> None:
    parser.add_argument('--work-dir', metavar='DIR', help=work_dir)
    parser.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of every dataset and evaluator')
    parser.add_argument('--ignore-unknown-categories', action='store_true',
                        help='let annotation files have categories that the config leaves out')
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of the config, such as '
                        'train_dataloader.batch_size=4 or a.b="[1,2]"')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='who starts the processes')
    # Launchers pass either spelling.
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)
