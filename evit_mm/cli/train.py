"""The command train: tools/train.py and ``evit-mm train``."""

import argparse

from .run_arguments import (
    add_acceleration_arguments,
    add_label_map_arguments,
    add_run_arguments,
)

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = 'Train a detector or segmentor.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: those of MMDetection's tools/train.py, and this project's."""
    parser.add_argument('config',
                        help='config file, or the name of a packaged config such as '
                        'retinanet_evit_m4_coco')
    add_run_arguments(parser, work_dir_help='folder of logs and checkpoints')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='PATH',
                        help='resume from PATH, or from the latest checkpoint of the work dir')
    parser.add_argument('--new-schedule', action='store_true',
                        help='resume with the learning rate and schedule of the config instead of '
                        'those of the checkpoint')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument('--from-scratch', action='store_true',
                        help='random weights, and BN that learns its statistics')
    parser.add_argument('--channels-last', action=argparse.BooleanOptionalAction,
                        help='keep feature maps in the channels-last memory format (default: on a '
                        'CPU, in one process)')
    add_acceleration_arguments(parser)
    add_label_map_arguments(parser, training=True)


def run(args: argparse.Namespace) -> None:
    """Train as the flags say."""
    from ..engine import train

    train(args.config, work_dir=args.work_dir, data_root=args.data_root, resume=args.resume,
          new_schedule=args.new_schedule, from_scratch=args.from_scratch, amp=args.amp,
          bf16=args.bf16, channels_last=args.channels_last, compile=args.compile,
          auto_scale_lr=args.auto_scale_lr, seed=args.seed, cfg_options=args.cfg_options,
          masks=args.masks, val_masks=args.val_masks, images=args.images,
          val_images=args.val_images, classes=args.classes,
          zero_is_unlabelled=args.zero_is_unlabelled, mask_values=args.mask_values,
          ignore_unknown_categories=args.ignore_unknown_categories,
          skip_invalid_objects=args.skip_invalid_objects, launcher=args.launcher)
