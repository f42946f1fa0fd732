"""The flags of tools/benchmark.py."""

import argparse
import re
from pathlib import Path
from typing import Any

from .common import ConfigOptions

DESCRIPTION = (
    'Measure time, memory, parameters and multiply-adds of '
        'backbones, detectors and segmentors in several forms, which take turns in one run, with '
        'random weights.')

_MODES = ('inference', 'train')
_FORMS = ('eager', 'deploy', 'folded', 'compiled')
_DTYPES = ('fp32', 'bf16', 'fp16')
_LAYOUTS = ('contiguous', 'channels-last')


class _Variant(ConfigOptions):
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of tools/benchmark.py."""
    parser.add_argument('subjects', nargs='+', metavar='MODEL',
                        help='m0 to m5, the path of a config, timm://MODEL, torchvision://resnet50 '
                        'or torchvision://mobilenet_v3_large')

    what = parser.add_argument_group('what is measured')
    what.add_argument('--mode', choices=_MODES, default='inference',
                      help='inference, or the forward and backward pass of a training step with '
                      'frozen BN statistics (inference)')
    what.add_argument('--forms', nargs='+', choices=_FORMS, metavar='FORM',
                      help='eager (as built), deploy (inference: folded), folded (train: frozen BN '
                      'folded on the fly), compiled (the folded form through torch.compile); '
                      'default: all but compiled')
    what.add_argument('--dtype', nargs='+', choices=_DTYPES, default=['fp32'], metavar='DTYPE',
                      help='fp32, bf16, fp16, or several (fp32); train runs under autocast')
    what.add_argument('--layouts', nargs='+', choices=_LAYOUTS, default=['contiguous'],
                      metavar='LAYOUT', help='contiguous, channels-last, or both: of images and '
                      'weights (contiguous)')
    what.add_argument('--channels-last', dest='layouts', action='store_const',
                      const=['channels-last'], help='short for --layouts channels-last')
    what.add_argument('--cuda-graphs', action='store_true',
                      help='measure each form as a CUDA graph too')
    what.add_argument('--with-neck', action='store_true',
                      help='put RetinaNet\'s neck (256 wide, strides 8 to 128) behind backbones')
    what.add_argument('--until', choices=('backbone', 'neck'),
                      help='leave out what comes behind this part of a config\'s model')
    what.add_argument('--variant', nargs='+', action=_Variant, metavar=('NAME', 'KEY=VALUE'),
                      help='measure the only MODEL with these values too; may be given repeatedly')
    what.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                      help='change values of every config, or arguments of the backbone')

    peers = parser.add_argument_group('what it is compared with')
    peers.add_argument('--peers', action='store_true',
                       help='add timm\'s port of each m0 to m5, with the same weights, and '
                       'torchvision\'s ResNet-50 and MobileNetV3-Large')
    peers.add_argument('--peer-forms', nargs='+', choices=('eager', 'compiled'), metavar='FORM',
                       default=['eager'], help='forms of timm\'s and torchvision\'s models: eager, '
                       'compiled (eager)')
    peers.add_argument('--reference', metavar='NAME',
                       help='row, or model, that ratios are relative to (timm\'s port of the same '
                       'variant in eager fp32 where there is one, else the first row)')

    how = parser.add_argument_group('how')
    how.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                     help='size of the images (512 512)')
    how.add_argument('--shapes', nargs='+', type=_size, metavar='HxW',
                     help='several sizes, such as 256x256 800x1344: a table for each')
    how.add_argument('--batch', type=int, default=1, help='images at once (1)')
    how.add_argument('--repeats', type=int, default=30, help='runs that count (30)')
    how.add_argument('--threads', type=int, metavar='N', help='CPU threads (as torch chooses)')
    how.add_argument('--system-malloc', action='store_true',
                     help='leave malloc as the system has it, in which a CPU pays for new pages at '
                     'every run; without it all models run as in tools/train.py and tools/test.py '
                     '--fast, which keep freed memory')
    how.add_argument('--device', default='cpu', help='as torch names it (cpu)')
    how.add_argument('--seed', type=int, default=0, help='seed of weights, images, turns (0)')
    how.add_argument('--json', type=Path, metavar='FILE', help='write all figures there too')
    how.add_argument('--plot', type=Path, metavar='FILE.png',
                     help='draw ratios; with --shapes, time and memory over pixels')


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text!r} must be HEIGHTxWIDTH, such as 800x1344')
    return int(match[1]), int(match[2])


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..benchmark import benchmark

    benchmark(args)
