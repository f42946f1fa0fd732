"""The command test: tools/test.py and ``evit-mm test``."""

import argparse

from .run_arguments import (
    add_acceleration_arguments,
    add_label_map_arguments,
    add_own_data_arguments,
    add_run_arguments,
)

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = 'Test a detector or segmentor.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: those of MMDetection's tools/test.py, and this project's."""
    parser.add_argument('config',
                        help='config file, or the name of a packaged config such as '
                        'retinanet_evit_m4_coco')
    parser.add_argument('checkpoint', help='file, address or name of the weights')
    add_run_arguments(parser, work_dir_help='folder of logs and metrics')
    parser.add_argument('--out', metavar='PATH',
                        help='store predictions: a .pkl file for detection, a folder for '
                        'segmentation')
    parser.add_argument('--show-dir', metavar='DIR',
                        help='write pictures of predictions next to the ground truth')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='X',
                        help='lowest score of the detections in these pictures (0.3)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--fast', action='store_true',
                        help='--deploy and --channels-last, which leave all metrics as they are')
    parser.add_argument('--deploy', action='store_true',
                        help='fold BN and everything else that can be folded, after loading')
    parser.add_argument('--channels-last', action='store_true',
                        help='keep feature maps in the channels-last memory format')
    add_acceleration_arguments(parser)
    add_own_data_arguments(parser, training=False)
    add_label_map_arguments(parser, training=False)


def run(args: argparse.Namespace) -> None:
    """Test as the flags say; the evaluators print their metrics."""
    from ..engine import test

    test(args.config, args.checkpoint, work_dir=args.work_dir, data_root=args.data_root,
         image_size=args.image_size, out=args.out, show_dir=args.show_dir,
         score_thr=args.score_thr, tta=args.tta, fast=args.fast, deploy=args.deploy,
         channels_last=args.channels_last, compile=args.compile, bf16=args.bf16, seed=args.seed,
         cfg_options=args.cfg_options,
         val_ann=args.val_ann, images=args.images, val_images=args.val_images, data=args.data,
         masks=args.masks, classes=args.classes, zero_is_unlabelled=args.zero_is_unlabelled,
         mask_values=args.mask_values, ignore_unknown_categories=args.ignore_unknown_categories,
         skip_invalid_objects=args.skip_invalid_objects, launcher=args.launcher)
