"""The command `analyze channels`."""

import argparse
from pathlib import Path

from ..common import ConfigOptions
from .common import add_common_arguments, common_keywords

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('Rank the channels of queries and keys (QK), values (V) and feed-forward parts '
               '(FFN) by how much the loss would change without them, and remove the least '
               'important ones in steps, until a share of the multiply-adds remains (section 2.3 '
               'of the paper). Nothing is trained.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the analysis."""
    parser.add_argument('model', metavar='MODEL',
                        help='config of a detector or segmentor with an EfficientViT backbone, or '
                             'timm://MODEL, a ViT, DeiT or Swin classifier')
    parser.add_argument('--checkpoint', metavar='FILE', help='weights of the whole model')
    parser.add_argument('--pretrained', action='store_true',
                        help='load published weights; for a config, those that it names')
    parser.add_argument('--budget', type=float, default=0.66, metavar='SHARE',
                        help='share of the multiply-adds to keep, of the backbone or of the '
                             'classifier (0.66)')
    parser.add_argument('--steps', type=int, default=10, metavar='N',
                        help='removal steps; the remaining channels are ranked before each (10)')
    parser.add_argument('--kinds', nargs='+', choices=('QK', 'V', 'FFN'),
                        default=('QK', 'V', 'FFN'), help='kinds that may be removed (all)')
    parser.add_argument('--batches', type=int, default=8, metavar='N',
                        help='batches over which a ranking averages (8)')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='images per batch (the config\'s; 16 for classifiers)')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                        help='size of the image for which multiply-adds are counted (512 512; '
                             'classifiers: their own)')
    parser.add_argument('--export-arch', type=Path, metavar='FILE',
                        help='write a config with the remaining widths')
    config = parser.add_argument_group('configs, whose training data and loss are used')
    config.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of every dataset')
    config.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='values of the config')
    classifier = parser.add_argument_group('classifiers')
    classifier.add_argument('--images', type=Path, metavar='DIR',
                            help='folder of images, with one subfolder per class')
    classifier.add_argument('--labels', choices=('folders', 'predicted'), default='folders',
                            help='labels for the loss: the class of the subfolder, or the '
                                 'predictions of the model itself (folders)')
    add_common_arguments(parser, 'channels')


def run(args: argparse.Namespace) -> None:
    """Run the analysis."""
    from ...analysis.channels import analyze_channels

    analyze_channels(args.model, checkpoint=args.checkpoint, pretrained=args.pretrained,
                     budget=args.budget, steps=args.steps, kinds=args.kinds, batches=args.batches,
                     batch_size=args.batch_size, shape=args.shape, export_arch=args.export_arch,
                     data_root=args.data_root, cfg_options=args.cfg_options, images=args.images,
                     labels=args.labels, **common_keywords(args))
