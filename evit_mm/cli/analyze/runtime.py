"""The flags of tools/analyze.py runtime."""

import argparse
from typing import Any

from ..common import ConfigOptions
from .common import add_common_flags

__all__ = ['add_runtime_parser']


def add_runtime_parser(analyses: Any) -> None:
    """Add the analysis of where time goes.

    Args:
        analyses: What `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = analyses.add_parser(
        'runtime', help='share of the run time by kind of operation',
        description='Share of the run time by kind of operation, and how much of it is bound by '
                    'memory, of models side by side (section 2.1 of the paper).')
    parser.add_argument('models', nargs='+', metavar='MODEL',
                        help='m0 to m5, timm://MODEL, torchvision://resnet50, '
                        'torchvision://mobilenet_v3_large or a config; ":deploy" behind it takes '
                        'the deploy form, as in m4:deploy')
    parser.add_argument('--mode', choices=('inference', 'train'), default='inference',
                        help='train: forward and backward pass (inference)')
    parser.add_argument('--shape', nargs=2, type=int, default=(512, 512),
                        metavar=('HEIGHT', 'WIDTH'), help='size of the images (512 512)')
    parser.add_argument('--batch', type=int, default=1, help='images at once (1)')
    parser.add_argument('--repeats', type=int, default=10,
                        help='profiled steps, of which the middle half counts (10)')
    parser.add_argument('--unfused', action='store_true',
                        help='let timm\'s models compute attention step by step, as they did when '
                        'the paper was written; one fused operation counts as matmul')
    parser.add_argument('--options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='arguments of our backbones, such as norm_eval=True, and values of '
                        'configs')
    add_common_flags(parser, 'runtime')
    parser.set_defaults(action=_analyze)


def _analyze(options: argparse.Namespace) -> None:
    from ...analysis.runtime import analyze_runtime  # with what it imports, for this one alone

    analyze_runtime(options)
