"""The command `analyze proportion`."""

import argparse

from .common import add_common_arguments, common_keywords

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('Build members of a family with other shares of attention layers, search the widths '
               'at which they are as fast as a reference, and report how much of their time is '
               'memory-bound (section 2.1 of the paper).')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the analysis."""
    parser.add_argument('--family', default='m4',
                        help='m0 to m5, whose depths and layers per block vary, or deit: '
                        'classifiers with the 24 layers of DeiT-T (m4)')
    parser.add_argument('--shares', nargs='+', type=float, metavar='SHARE',
                        default=(0, 0.2, 0.27, 0.4, 0.5, 0.6, 1),
                        help='attention / (attention + feed-forward) layers, 0 to 1; the closest '
                        'that whole layers permit is used (0 0.2 0.27 0.4 0.5 0.6 1)')
    parser.add_argument('--reference', metavar='MODEL',
                        help='model that sets the speed, as in "runtime" (the family\'s own model, '
                        'and timm\'s DeiT-T for deit)')
    parser.add_argument('--tolerance', type=float, default=0.02,
                        help='accepted difference from the reference\'s speed, as a share (0.02)')
    parser.add_argument('--shape', nargs=2, type=int, default=(224, 224),
                        metavar=('HEIGHT', 'WIDTH'), help='size of the images (224 224)')
    parser.add_argument('--batch', type=int, default=8, help='images per step (8)')
    parser.add_argument('--repeats', type=int, default=15,
                        help='rounds of a measurement; three times as many confirm it (15)')
    parser.add_argument('--config', metavar='CONFIG',
                        help='config with an EfficientViT backbone: the files of the members are '
                        'then whole configs, this one with a member as its backbone')
    add_common_arguments(parser, 'proportion')


def run(args: argparse.Namespace) -> None:
    """Run the analysis."""
    from ...analysis.attention_share import analyze_attention_share

    analyze_attention_share(args.family, shares=args.shares, reference=args.reference,
                            tolerance=args.tolerance, shape=args.shape, batch=args.batch,
                            repeats=args.repeats, config=args.config, **common_keywords(args))
