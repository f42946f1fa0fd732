"""The flags of `tools/analyze.py channels`."""

import argparse
from pathlib import Path
from typing import Any

from ..common import ConfigOptions
from .common import add_common_flags

__all__ = ['add_channels_parser']


def add_channels_parser(analyses: Any) -> None:
    """Add the analysis of channels to those of tools/analyze.py."""
    parser = analyses.add_parser(
        'channels', help='which channels matter: Taylor importance, and removal to a budget',
        description='Rank the channels of queries and keys (QK), values (V) and feed-forward parts '
                    '(FFN) by how much the loss would change without them, and remove the least '
                    'important ones step by step, until a share of the multiply-adds is left '
                    '(section 2.3 of the paper). Weights stay as they are: nothing is trained.')
    parser.add_argument('model', metavar='MODEL',
                        help='config of a detector or segmentor with our backbone, or '
                             'timm://MODEL, a ViT, DeiT or Swin classifier')
    parser.add_argument('--checkpoint', metavar='FILE', help='weights of the whole model')
    parser.add_argument('--pretrained', action='store_true',
                        help='fetch the published weights; of a config, those that it names')
    parser.add_argument('--budget', type=float, default=0.66, metavar='SHARE',
                        help='share of the multiply-adds to keep, of the backbone or of the '
                             'classifier (0.66)')
    parser.add_argument('--steps', type=int, default=10, metavar='N',
                        help='steps to the budget; each ranks what is left anew (10)')
    parser.add_argument('--kinds', nargs='+', choices=('QK', 'V', 'FFN'),
                        default=('QK', 'V', 'FFN'), help='what may be removed (all)')
    parser.add_argument('--batches', type=int, default=8, metavar='N',
                        help='batches that each ranking averages over (8)')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='images of a batch (as the config says; 16 for classifiers)')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                        help='size of the image that multiply-adds are counted for (512 512; '
                             'classifiers: as they are built)')
    parser.add_argument('--export-arch', type=Path, metavar='FILE',
                        help='write the widths that are left as an arch=dict(...) of EfficientViT')
    config = parser.add_argument_group('configs, whose training data and loss are used')
    config.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of every dataset')
    config.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of the config')
    classifier = parser.add_argument_group('classifiers')
    classifier.add_argument('--images', type=Path, metavar='DIR',
                            help='folder of images, with one folder for each class')
    classifier.add_argument('--labels', choices=('folders', 'predicted'), default='folders',
                            help='what the loss takes for true: the class of the folder, or, '
                                 'without labels, what the model itself predicts (folders)')
    add_common_flags(parser, 'channels')
    parser.set_defaults(action=_channels)


def _channels(options: argparse.Namespace) -> None:
    from ...analysis.channels import analyze_channels

    analyze_channels(options)
