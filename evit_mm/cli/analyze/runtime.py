"""The command `analyze runtime`."""

import argparse

from ..common import ConfigOptions
from .common import add_common_arguments, common_keywords

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('Share of the run time by kind of operation, and how much of it is memory-bound, of '
               'several models side by side (section 2.1 of the paper).')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the analysis."""
    parser.add_argument('models', nargs='+', metavar='MODEL',
                        help='m0 to m5, timm://MODEL, torchvision://resnet50, '
                        'torchvision://mobilenet_v3_large or a config; ":deploy" after it selects '
                        'the deploy form, as in m4:deploy')
    parser.add_argument('--mode', choices=('inference', 'train'), default='inference',
                        help='train: forward and backward pass (inference)')
    parser.add_argument('--shape', nargs=2, type=int, default=(512, 512),
                        metavar=('HEIGHT', 'WIDTH'), help='size of the images (512 512)')
    parser.add_argument('--batch', type=int, default=1, help='images per step (1)')
    parser.add_argument('--repeats', type=int, default=10,
                        help='profiled steps, of which the middle half is averaged (10)')
    parser.add_argument('--unfused', action='store_true',
                        help='let timm\'s models compute attention step by step, as they did when '
                        'the paper was written; a fused operation counts as matmul')
    parser.add_argument('--options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='arguments of our backbones, such as norm_eval=True, and values of '
                        'configs')
    add_common_arguments(parser, 'runtime')


def run(args: argparse.Namespace) -> None:
    """Run the analysis."""
    from ...analysis.runtime import analyze_runtime

    analyze_runtime(args.models, mode=args.mode, shape=args.shape, batch=args.batch,
                    repeats=args.repeats, unfused=args.unfused, options=args.options,
                    **common_keywords(args))
