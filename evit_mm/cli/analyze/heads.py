"""The flags of tools/analyze.py heads."""

import argparse
from typing import Any

from ..common import ConfigOptions
from .common import add_common_flags

__all__ = ['add_heads_parser']


def add_heads_parser(analyses: Any) -> None:
    """Add the analysis of how alike heads are.

    Args:
        analyses: What `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = analyses.add_parser(
        'heads', help='how alike the attention maps of a block\'s heads are',
        description='Per attention block, the cosine similarity of the heads\' attention maps '
        '(section 2.2 of the paper): each head\'s largest with any other head, and the mean of '
        'all pairs, over heads, windows and images. Of EfficientViT, and of timm\'s ViT, DeiT, '
        'Swin and EfficientViT.')
    parser.add_argument('models', nargs='+', metavar='MODEL',
                        help='m0 to m5, timm://MODEL such as timm://deit_tiny_patch16_224, or a '
                        'config')
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument('--images', metavar='FOLDER',
                        help='the images below a folder, at any depth')
    images.add_argument('--dataset', metavar='CONFIG', help='the images of a config\'s test data')
    parser.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of --dataset')
    parser.add_argument('--num-images', type=int, default=128, metavar='N',
                        help='how many, evenly spaced in their sorted order; all where there are '
                        'fewer (128)')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                        help='size that images are scaled and cropped to (224 224; of timm\'s '
                        'models the size that each was trained with)')
    parser.add_argument('--batch', type=int, default=8, metavar='N',
                        help='images at once; changes memory, not results (8)')
    parser.add_argument('--class-token', choices=('keep', 'drop'), default='keep',
                        help='whether maps of ViT and DeiT include the class token (keep)')
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument('--pretrained', action='store_true',
                         help='published weights: of ImageNet for m0 to m5 and timm\'s models, '
                         'those that it names for a config; random ones of --seed without it')
    weights.add_argument('--checkpoint', '--weights', metavar='FILE',
                         help='weights of the one MODEL: a file, an address, or a name such as '
                         'evit://efficientvit_m4; for a config, those of its whole model')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of every config, arguments of m0 to m5 and of timm\'s '
                        'models, such as window_sizes="[7,7,4]"')
    add_common_flags(parser, 'heads')
    parser.set_defaults(action=_analyze_heads)


def _analyze_heads(options: argparse.Namespace) -> None:
    # Only here: what an analysis imports takes seconds.
    from ...analysis.head_similarity import analyze_heads

    analyze_heads(options)
