"""The command train: tools/train.py and ``evit-mm train``."""

import argparse

from .run_arguments import (
    add_acceleration_arguments,
    add_label_map_arguments,
    add_own_data_arguments,
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
    parser.add_argument('--show-val', action='store_true',
                        help='draw predictions of the first images of each validation, in '
                        'pictures/ of the work dir')
    parser.add_argument('--tracker', action='append', default=[], metavar='NAME',
                        choices=['tensorboard', 'wandb', 'mlflow'],
                        help='send losses and metrics to tensorboard, wandb or mlflow too; may be '
                        'repeated')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision (GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument('--from-scratch', action='store_true',
                        help='random weights, and BN that learns its statistics')
    parser.add_argument('--from', dest='from_checkpoint', metavar='CHECKPOINT',
                        help='file, address or name of a trained detector or segmentor to start '
                        'from; layers of other classes start anew')
    parser.add_argument('--epochs', type=int, metavar='N',
                        help='length of the training; the schedule is stretched with it')
    parser.add_argument('--iters', type=int, metavar='N', help='the same in iterations')
    parser.add_argument('--lr', type=float, metavar='RATE', help='learning rate')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='images of each process in a step')
    parser.add_argument('--early-stopping', type=int, nargs='?', const=5, metavar='PATIENCE',
                        help='stop after PATIENCE (5) validations without a better result')
    parser.add_argument('--ema', action='store_true',
                        help='validate and save an exponential moving average of the weights')
    parser.add_argument('--channels-last', action=argparse.BooleanOptionalAction,
                        help='keep feature maps in the channels-last memory format (default: on a '
                        'CPU, in one process)')
    parser.add_argument('--skip-nan', type=int, default=0, metavar='N',
                        help='skip up to N steps whose loss or gradient is not finite; by default '
                        'the first one ends the training')
    parser.add_argument('--skip-bad-images', action='store_true',
                        help='train on another image in the place of one that can\'t be loaded')
    add_acceleration_arguments(parser)
    add_own_data_arguments(parser, training=True)
    add_label_map_arguments(parser, training=True)


def run(args: argparse.Namespace) -> None:
    """Train as the flags say."""
    from ..engine import train

    train(args.config, work_dir=args.work_dir, data_root=args.data_root,
          image_size=args.image_size, resume=args.resume, new_schedule=args.new_schedule,
          show_val=args.show_val, tracker=tuple(args.tracker),
          from_scratch=args.from_scratch, amp=args.amp, bf16=args.bf16,
          channels_last=args.channels_last, compile=args.compile,
          auto_scale_lr=args.auto_scale_lr, seed=args.seed, cfg_options=args.cfg_options,
          train_ann=args.train_ann, val_ann=args.val_ann, images=args.images,
          val_images=args.val_images, data=args.data, from_checkpoint=args.from_checkpoint,
          epochs=args.epochs, iters=args.iters, lr=args.lr, batch_size=args.batch_size,
          early_stopping=args.early_stopping, ema=args.ema,
          masks=args.masks, val_masks=args.val_masks, classes=args.classes,
          zero_is_unlabelled=args.zero_is_unlabelled, mask_values=args.mask_values,
          ignore_unknown_categories=args.ignore_unknown_categories,
          skip_invalid_objects=args.skip_invalid_objects, skip_nan=args.skip_nan,
          skip_bad_images=args.skip_bad_images, launcher=args.launcher)
