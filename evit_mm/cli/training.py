"""The flags of tools/train.py and tools/test.py."""

import argparse

from .common import ConfigOptions

__all__ = ['test_parser', 'train_parser']


def train_parser() -> argparse.ArgumentParser:
    """The flags of tools/train.py; MMDetection's, and --data-root, --seed, --from-scratch."""
    parser = argparse.ArgumentParser(
        prog='train.py', description='Train a detector or segmentor.')
    parser.add_argument('config', help='config file')
    _add_common_flags(parser, work_dir='where logs and checkpoints go')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='PATH',
                        help='resume from PATH, or from the latest checkpoint of the work dir')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument('--from-scratch', action='store_true',
                        help='random weights, and BN that learns its statistics')
    _add_acceleration_flags(parser)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The flags of tools/test.py; MMDetection's, and --data-root, --seed."""
    parser = argparse.ArgumentParser(prog='test.py', description='Test a detector or segmentor.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    _add_common_flags(parser, work_dir='where logs and metrics go')
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
    _add_acceleration_flags(parser)
    return parser


def _add_acceleration_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--channels-last', action='store_true',
                        help='keep feature maps in the channels-last memory format')
    parser.add_argument('--compile', action='store_true',
                        help='run backbone and neck through torch.compile (on a CPU it needs a '
                        'C++ compiler)')
    parser.add_argument('--bf16', action='store_true',
                        help='compute in bfloat16 by autocast, on CPU or GPU; losses, boxes and '
                        'scores stay in float32')


def _add_common_flags(parser: argparse.ArgumentParser, *, work_dir: str) -> None:
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
