"""The flags of the tools, and how a tool ends."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from .errors import UserError

__all__ = ['benchmark_parser', 'convert_weights_parser', 'prepare_data_parser', 'run_tool',
           'test_parser', 'train_parser']


class _ConfigOptions(DictAction):
    """mmengine's KEY=VALUE pairs, with a sentence instead of a traceback for a malformed one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'{option_string} takes KEY=VALUE pairs, but got {" ".join(wrong)}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            parser.error(f'{option_string} {" ".join(values)}: {error}')


class _Variant(_ConfigOptions):
    """A name and KEY=VALUE pairs; gathers one (name, options) pair per use of the flag."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        name, *pairs = values
        if '=' in name:
            parser.error(f'{option_string} starts with a name, but got {name}')
        earlier = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, {})
        super().__call__(parser, namespace, pairs, option_string)
        setattr(namespace, self.dest, [*earlier, (name, getattr(namespace, self.dest))])


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
    return parser


def prepare_data_parser() -> argparse.ArgumentParser:
    """The data sets that tools/prepare_data.py prepares, and the flags of each."""
    parser = argparse.ArgumentParser(
        prog='prepare_data.py', description='Prepare a data set for training and evaluation.')
    datasets = parser.add_subparsers(required=True, metavar='DATASET')
    shapes = datasets.add_parser(
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
    return parser


def benchmark_parser() -> argparse.ArgumentParser:
    """The flags of tools/benchmark.py."""
    parser = argparse.ArgumentParser(
        prog='benchmark.py', description='Measure parameters, multiply-adds and latency of the '
        'parts of detectors and segmentors, with the weights that they start with.')
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG', help='config files')
    parser.add_argument('--variant', nargs='+', action=_Variant, metavar=('NAME', 'KEY=VALUE'),
                        help='measure the config with these values too; may be given repeatedly')
    parser.add_argument('--cfg-options', nargs='+', action=_ConfigOptions, metavar='KEY=VALUE',
                        help='change values of every config')
    parser.add_argument('--shape', nargs=2, type=int, default=(512, 512),
                        metavar=('HEIGHT', 'WIDTH'), help='size of the images (512 512)')
    parser.add_argument('--batch', type=int, default=1, help='images at once (1)')
    parser.add_argument('--repeats', type=int, default=30, help='runs that count (30)')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads (as torch chooses)')
    parser.add_argument('--device', default='cpu', help='as torch names it (cpu)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there too')
    return parser


def convert_weights_parser() -> argparse.ArgumentParser:
    """The flags of tools/convert_weights.py."""
    parser = argparse.ArgumentParser(
        prog='convert_weights.py',
        description='Write weights in another layout, or look into a file of them. Training and '
                    'testing need no conversion: they take every layout as it is.')
    parser.add_argument('src', nargs='?', metavar='SRC',
                        help='a file of any known layout, an address, or a published name')
    parser.add_argument('dst', nargs='?', metavar='DST',
                        help='the file to write; .pth and .pt give a file of torch.save, all '
                             'else a .safetensors file')
    parser.add_argument('--to', choices=('evit-mm', 'timm', 'microsoft'), default='evit-mm',
                        help='the layout to write (default: evit-mm)')
    parser.add_argument('--inspect', action='store_true',
                        help='print what SRC holds; builds no model and runs no code of it')
    parser.add_argument('--list', action='store_true', help='print the published weights')
    parser.add_argument('--overwrite', action='store_true', help='replace DST if it exists')
    parser.add_argument('--trust', action='store_true',
                        help='read SRC even if that runs code from it: only for files of people '
                             'whose programs you would run')
    return parser


def run_tool(parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], Any],
             arguments: Sequence[str] | None = None) -> int:
    """Parse, act, and turn a user's mistake into one sentence.

    Set EVIT_MM_TRACEBACK=1 to see where a sentence came from.

    Returns:
        int: The exit status: 0, 2 after a user's mistake, 130 after an interruption.
    """
    # Said by setuptools about mmengine, at every import.
    warnings.filterwarnings('ignore', message='.*pkg_resources is deprecated')
    options = parser.parse_args(arguments)
    if getattr(options, 'local_rank', None) is not None:
        os.environ.setdefault('LOCAL_RANK', str(options.local_rank))
    try:
        action(options)
    except UserError as error:
        if os.environ.get('EVIT_MM_TRACEBACK'):
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped; what was saved is kept', file=sys.stderr)
        return 130
    return 0


def _add_common_flags(parser: argparse.ArgumentParser, *, work_dir: str) -> None:
    parser.add_argument('--work-dir', metavar='DIR', help=work_dir)
    parser.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of every data set and evaluator')
    parser.add_argument('--ignore-unknown-categories', action='store_true',
                        help='let annotation files have categories that the config leaves out')
    parser.add_argument('--seed', type=int, help='seed of all random numbers')
    parser.add_argument('--cfg-options', nargs='+', action=_ConfigOptions, metavar='KEY=VALUE',
                        help='change values of the config, such as '
                        'train_dataloader.batch_size=4 or a.b="[1,2]"')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='who starts the processes')
    # Launchers pass either spelling.
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)
