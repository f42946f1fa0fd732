"""The command `analyze heads`."""

import argparse

from ..common import ConfigOptions
from .common import add_common_arguments, common_keywords

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('Cosine similarity of the attention maps of a block\'s heads (section 2.2 of the '
               'paper): each head\'s largest with any other head, and the mean of all pairs, over '
               'heads, windows and images. For EfficientViT, and timm\'s ViT, DeiT, Swin and '
               'EfficientViT.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the analysis."""
    parser.add_argument('models', nargs='+', metavar='MODEL',
                        help='m0 to m5, timm://MODEL such as timm://deit_tiny_patch16_224, or a '
                        'config')
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument('--images', metavar='FOLDER',
                        help='folder of images, including its subfolders')
    images.add_argument('--dataset', metavar='CONFIG',
                        help='config whose test images are used')
    parser.add_argument('--data-root', metavar='DIR',
                        help='folder that replaces the data_root of --dataset')
    parser.add_argument('--num-images', type=int, default=128, metavar='N',
                        help='number of images, evenly spaced in their sorted order; at most all '
                        '(128)')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('HEIGHT', 'WIDTH'),
                        help='size to which images are resized and cropped (224 224; for timm\'s '
                        'models the size with which they were trained)')
    parser.add_argument('--batch', type=int, default=8, metavar='N',
                        help='images per forward pass; changes memory, not results (8)')
    parser.add_argument('--class-token', choices=('keep', 'drop'), default='keep',
                        help='whether maps of ViT and DeiT include the class token (keep)')
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument('--pretrained', action='store_true',
                         help='load published weights: of ImageNet for m0 to m5 and timm\'s '
                         'models, those that it names for a config; otherwise random ones')
    weights.add_argument('--checkpoint', '--weights', metavar='FILE',
                         help='weights of the only MODEL: a file, an address, or a name such as '
                         'evit://efficientvit_m4; for a config, those of its whole model')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='values of configs, and arguments of m0 to m5 and of timm\'s models, '
                        'such as window_sizes="[7,7,4]"')
    add_common_arguments(parser, 'heads')


def run(args: argparse.Namespace) -> None:
    """Run the analysis."""
    from ...analysis.head_similarity import analyze_heads

    analyze_heads(args.models, images=args.images, dataset=args.dataset, data_root=args.data_root,
                  num_images=args.num_images, shape=args.shape, batch=args.batch,
                  class_token=args.class_token, pretrained=args.pretrained,
                  checkpoint=args.checkpoint, cfg_options=args.cfg_options,
                  **common_keywords(args))
