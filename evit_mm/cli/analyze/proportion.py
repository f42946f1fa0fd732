"""The flags of tools/analyze.py proportion."""

import argparse
from typing import Any

from .common import add_common_flags

__all__ = ['add_proportion_parser']


def add_proportion_parser(analyses: Any) -> None:
    """Add the analysis of what the share of attention layers does.

    Args:
        analyses: What `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = analyses.add_parser(
        'proportion', help='memory-bound time against the share of attention layers',
        description='Build members of a family with other shares of attention layers, find the '
                    'widths at which each is as fast as a reference, and say how much of their '
                    'time is bound by memory (section 2.1 of the paper).')
    parser.add_argument('--family', default='m4',
                        help='m0 to m5, whose depths and layers per block are varied, or deit: '
                        'classifiers with the 24 layers of DeiT-T (m4)')
    parser.add_argument('--shares', nargs='+', type=float, metavar='SHARE',
                        default=[0, 0.2, 0.27, 0.4, 0.5, 0.6, 1],
                        help='attention / (attention + feed-forward) layers, 0 to 1; the nearest '
                        'that whole layers allow is taken (0 0.2 0.27 0.4 0.5 0.6 1)')
    parser.add_argument('--reference', metavar='MODEL',
                        help='what sets the speed, named as in "runtime" (the family\'s own model, '
                        'and timm\'s DeiT-T for deit)')
    parser.add_argument('--tolerance', type=float, default=0.02,
                        help='how far from the reference\'s speed is near enough (0.02)')
    parser.add_argument('--shape', nargs=2, type=int, default=(224, 224),
                        metavar=('HEIGHT', 'WIDTH'), help='size of the images (224 224)')
    parser.add_argument('--batch', type=int, default=8, help='images at once (8)')
    parser.add_argument('--repeats', type=int, default=15,
                        help='rounds of a measurement; three times as many to confirm it (15)')
    parser.add_argument('--config', metavar='CONFIG',
                        help='a config with our backbone: the files that are written are then '
                        'whole configs, this one with a member as its backbone')
    add_common_flags(parser, 'proportion')
    parser.set_defaults(action=_analyze)


def _analyze(options: argparse.Namespace) -> None:
    from ...analysis.attention_share import (  # with what it imports, for this alone
        analyze_proportion,
    )

    analyze_proportion(options)
