"""The length of a training, and what follows from it: schedule, validations, log and batch size.

Configs are made for COCO. On thirty pictures their warm-up would not end, their log would stay
silent, and their twelve epochs would be over in a minute. `fit_recipe` fits a config to the number
of images of one's own data, and `apply_flags` changes what ``--epochs`` and its like name.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import EpochBasedTrainLoop

from ..errors import ConfigError, UserError
from . import preflight
from .hooks.checkpoint import SafeCheckpointHook

__all__ = ['RecipeFlags', 'add_switches', 'apply_flags', 'fit_recipe', 'keep_best_checkpoint',
           'warn_of_schedule', 'write_safe_checkpoints']

# A head that starts anew needs about this many steps, however few the images are.
_LEAST_ITERATIONS = 1500
# Long configs are made for large datasets and random weights; more passes over a small dataset than
# this are wasted.
_MOST_PASSES = 100
_WARM_UP_SHARE = 0.1  # the rest of the training runs at the full rate and below
_MOST_VALIDATIONS = 20  # enough to see the best one, and a small part of the time
_LEAST_STEPS_PER_EPOCH = 4  # so that a gradient is that of a part of the images
_KEPT_CHECKPOINTS = 2  # besides the best one
_LOG_INTERVAL = {'cpu': 1, 'cuda': 10}  # iterations of a large image take seconds on a CPU
_WARM_UPS = ('LinearLR', 'ConstantLR', 'QuadraticWarmupLR', 'LinearParamScheduler',
             'LinearMomentum', 'ConstantMomentum', 'QuadraticWarmupMomentum')
_STOCK_CHECKPOINT_HOOK = (CheckpointHook, 'CheckpointHook', 'mmengine.CheckpointHook',
                          'mmengine.hooks.CheckpointHook')
_LENGTHS = ('begin', 'end', 'T_max', 'total_steps', 'step_size', 'milestones', 'periods')


@dataclass(frozen=True)
class RecipeFlags:
    """What the user sets of a training; None leaves it to the config, or to the recipe.

    Attributes:
        epochs: Passes over the training images.
        iters: Steps, instead of ``epochs``.
        lr: Learning rate, in the full part of the schedule.
        batch_size: Images of each process in a step.
    """

    epochs: int | None = None
    iters: int | None = None
    lr: float | None = None
    batch_size: int | None = None

    def check(self) -> None:
        """Check the values.

        Raises:
            UserError: If one is not above 0, or both lengths are given.
        """
        for name, value in vars(self).items():
            if value is not None and not (0 < value < math.inf):
                raise UserError(f'--{name.replace("_", "-")} must be above 0, but is {value}')
        if self.epochs and self.iters:
            raise UserError('--epochs and --iters both set the length of the training: choose one')


def fit_recipe(config: Config, images: int, flags: RecipeFlags, options: Iterable[str] = ()
               ) -> None:
    """Fit a config to a number of training images, and log what was chosen.

    - The batch has the config's size, and less, down to two, where an epoch would be shorter than
      four steps.
    - The learning rate is the config's at its own batch size (``auto_scale_lr.base_batch_size``).
      At another one Adam's is scaled with the square root of their ratio, as its steps are
      normalized, and SGD's in proportion.
    - The training has the config's number of epochs, but at most 100, and at least 1,500
      iterations.
    - The schedule is stretched in proportion, so that steps at 2/3 and 11/12 stay there. The
      warm-up takes at most a tenth.
    - There are at most 20 validations, and as many checkpoints, of which the last two are kept.
    - The log has a line for each iteration on a CPU, and for each tenth one on a GPU.

    Args:
        config: A whole config; changed in place.
        images: Number of training images.
        flags: What the user sets; it takes the place of the recipe's values.
        options: Dotted keys that ``--cfg-options`` has set, which the recipe leaves as they are.
    """
    flags.check()
    options = set(options)
    loader = config.train_dataloader
    own_batch, processes = loader['batch_size'], _processes(config)
    batch = flags.batch_size or own_batch
    if not flags.batch_size and 'train_dataloader.batch_size' not in options:
        # A BN behind a global pooling can't learn from a single image.
        batch = min(batch, max(2, images // (_LEAST_STEPS_PER_EPOCH * processes)))
    loader['batch_size'] = batch
    rate = _fit_rate(config, own_batch, batch, processes, flags.lr, options)
    steps = math.ceil(images * _repeats(loader['dataset']) / (batch * processes))
    loop = config.train_cfg
    by_epoch = _is_epoch_based(loop)
    key = 'max_epochs' if by_epoch else 'max_iters'
    old = loop[key]
    if flags.epochs or flags.iters:
        length = _converted(flags, by_epoch, lambda: steps)
    elif f'train_cfg.{key}' in options:
        length = old
    elif by_epoch:
        length = max(min(old, _MOST_PASSES), math.ceil(_LEAST_ITERATIONS / steps))
    else:
        length = max(_LEAST_ITERATIONS, min(old, _MOST_PASSES * steps))
    if length < old and not (flags.epochs or flags.iters):
        unit = 'epochs' if by_epoch else 'iterations'
        _log(f'the config\'s {old} {unit} are shortened to {length}, as these are few images: '
             f'--{unit.replace("iterations", "iters")} {old} keeps them')
    iterations = length * steps if by_epoch else length
    _set_length(config, length, iterations, options)
    interval = math.ceil(length / _MOST_VALIDATIONS)
    for path in ('train_cfg.val_interval', 'default_hooks.checkpoint.interval'):
        _set(config, path, interval, options)
    for name in ('dynamic_intervals', 'val_begin'):
        if f'train_cfg.{name}' not in options:
            loop.pop(name, None)
    _set(config, 'default_hooks.checkpoint.max_keep_ckpts', _KEPT_CHECKPOINTS, options)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    _set(config, 'default_hooks.logger.interval', _LOG_INTERVAL[device], options)
    # mmengine leaves out the last lines of an epoch, which may be all.
    _set(config, 'default_hooks.logger.ignore_last', False, options)
    warm_up = max((scheduler['end'] for scheduler in _schedulers(config)
                   if _is_warm_up(scheduler)), default=0)
    counted = f'{_count(length, "epoch")} of {_count(steps, "iteration")}' if by_epoch else \
        _count(length, 'iteration')
    every = loop.get('val_interval', interval)
    _log(f'{_count(images, "image")} in batches of {batch}, {counted}'
         + (f', a warm-up of {warm_up}' if warm_up else '')
         + (f', learning rate {rate:g}' if rate else '')
         + f', a validation each {_count(every, "epoch" if by_epoch else "iteration")}')


def apply_flags(config: Config, flags: RecipeFlags) -> None:
    """Change the length, the learning rate and the batch size of a config.

    The schedule is stretched in proportion. A number of epochs is converted where the config counts
    iterations, and the other way round, which reads the training dataset.

    Raises:
        UserError: If a value is not above 0.
        ConfigError: If the config has no place for it.
    """
    flags.check()
    loader = config.train_dataloader
    if flags.batch_size:
        if not isinstance(loader, MutableMapping) or 'batch_size' not in loader:
            raise ConfigError('--batch-size needs train_dataloader.batch_size in the config')
        loader['batch_size'] = flags.batch_size
    if flags.lr:
        _set_rate(config, flags.lr)
    if not (flags.epochs or flags.iters):
        return
    loop = config.train_cfg
    by_epoch = _is_epoch_based(loop)
    length = _converted(flags, by_epoch, lambda: _steps_per_epoch(config))
    _set_length(config, length, None if by_epoch else length)
    if by_epoch and flags.iters:
        _log(f'--iters {flags.iters} are {length} epochs, which this config counts')
    elif not by_epoch and flags.epochs:
        _log(f'--epochs {flags.epochs} are {length} iterations, which this config counts')


def keep_best_checkpoint(config: Config) -> None:
    """Let a config keep the checkpoint of the best validation, unless it says what to keep."""
    hook = (config.get('default_hooks') or {}).get('checkpoint')
    if not config.get('val_dataloader') or not isinstance(hook, MutableMapping):
        return
    if hook.get('type') in _STOCK_CHECKPOINT_HOOK:
        hook.setdefault('save_best', _main_metric(config) or 'auto')


def write_safe_checkpoints(config: Config) -> None:
    """Replace mmengine's checkpoint hook in a config, or as mmengine's default, by ours."""
    hooks = dict(config.get('default_hooks') or {})
    hook = hooks.setdefault('checkpoint', dict(type='CheckpointHook'))
    if isinstance(hook, MutableMapping) and hook.get('type') in _STOCK_CHECKPOINT_HOOK:
        hook['type'] = f'{SafeCheckpointHook.__module__}.{SafeCheckpointHook.__name__}'
    config.default_hooks = hooks


def add_switches(runner: Any, *, early_stopping: int | None, ema: bool) -> None:
    """Add early stopping and an average of the weights to a runner that has not started.

    Args:
        runner: The runner.
        early_stopping: Stop after this many validations without a better result; None never stops.
        ema: Validate and save an exponential moving average of the weights. Its memory is a tenth
            of the training, so that it has forgotten the start when the end comes, and at most
            5,000 iterations, as in RTMDet.

    Raises:
        ConfigError: If the config has no validation, or no metric that is known.
    """
    if early_stopping is not None:
        if early_stopping < 1:
            raise UserError(f'--early-stopping must be at least 1 validation, but is '
                            f'{early_stopping}')
        metric = _main_metric(runner.cfg)
        if runner.val_loop is None or metric is None:
            raise ConfigError('--early-stopping needs a validation by COCO\'s metric or by mIoU in '
                              'the config: add EarlyStoppingHook with a monitor to custom_hooks')
        # A thousandth: AP is a fraction, and mIoU a percentage.
        runner.register_hook(EarlyStoppingHook(
            metric, rule='greater', patience=early_stopping,
            min_delta=0.001 if metric.startswith('coco/') else 0.1))
    if ema and any(isinstance(hook, EMAHook) for hook in runner.hooks):
        _log('--ema: the config has an EMAHook already, which stays as it is')
    elif ema:
        momentum = max(2e-4, min(0.1, 10 / runner.train_loop.max_iters))
        runner.register_hook(EMAHook('ExponentialMovingAverage', momentum=momentum,
                                     update_buffers=True))


def warn_of_schedule(runner: Any) -> None:
    """Warn of a schedule that does not fit the length of a training.

    Args:
        runner: A runner that has not started, with its training loop built.
    """
    loop, config = runner.train_loop, runner.cfg
    iterations = loop.max_iters
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    length = loop.max_epochs if by_epoch else iterations
    unit = 'epochs' if by_epoch else 'iterations'
    for scheduler in _schedulers(config):
        end = scheduler.get('end', math.inf)
        if _is_warm_up(scheduler):
            steps = end * (len(loop.dataloader) if scheduler.get('by_epoch', True) else 1)
            if steps > iterations / 2:
                _warn(f'the warm-up takes {steps} iterations, and the whole training '
                      f'{iterations}: train longer with --epochs, or shorten the warm-up in '
                      'param_scheduler')
            continue
        milestones = scheduler.get('milestones') or []
        scale = length if scheduler.get('by_epoch', True) == by_epoch else None
        if scale and milestones and min(milestones) >= scale:
            _warn(f'param_scheduler lowers the learning rate after {min(milestones)} {unit}, and '
                  f'the training ends after {scale}: set milestones below')
    interval = ((config.get('default_hooks') or {}).get('logger') or {}).get('interval')
    if isinstance(interval, int) and not by_epoch and interval > iterations:
        _warn(f'default_hooks.logger.interval is {interval}, and the training has {iterations} '
              'iterations: no loss will be logged')
    if runner.val_loop is not None and loop.val_interval > length:
        _warn(f'train_cfg.val_interval is {loop.val_interval}, and the training has {length} '
              f'{unit}: it is validated at its end only')


# --- length and schedule ----------------------------------------------------------------------


def _is_epoch_based(loop: Mapping[str, Any]) -> bool:
    """Return whether a training loop's config counts epochs.

    Raises:
        ConfigError: If it counts neither epochs nor iterations.
    """
    if isinstance(loop, Mapping):
        if 'max_epochs' in loop:
            return True
        if 'max_iters' in loop:
            return False
    raise ConfigError('train_cfg has neither max_epochs nor max_iters, so that its length can\'t '
                      'be set')


def _converted(flags: RecipeFlags, by_epoch: bool, steps: Callable[[], int]) -> int:
    """Return the length that the flags ask for, in the unit that a config counts."""
    if by_epoch:
        return flags.epochs or math.ceil((flags.iters or 0) / steps())
    return flags.iters or (flags.epochs or 0) * steps()


def _steps_per_epoch(config: Config) -> int:
    """Read the training dataset, and return the number of steps that one pass takes."""
    loader = config.train_dataloader
    preflight.check_files(loader, ignore_unknown_categories=True,
                          scope=config.get('default_scope'))
    with DATASETS.switch_scope_and_registry(config.get('default_scope')) as registry:
        dataset = preflight.built_dataset(lambda: registry.build(dict(loader['dataset'])), 'train')
    return math.ceil(len(dataset) / (loader['batch_size'] * _processes(config)))


def _set_length(config: Config, length: int, iterations: int | None,
                options: set[str] | None = None) -> None:
    """Set the length of a training, and stretch what depends on it.

    Args:
        config: Changed in place.
        length: In the unit that the config counts.
        iterations: Length in iterations, if it is known.
        options: Dotted keys that are left as they are.
    """
    loop = config.train_cfg
    by_epoch = _is_epoch_based(loop)
    key = 'max_epochs' if by_epoch else 'max_iters'
    ratio = length / loop[key]
    loop[key] = length
    if loop.get('dynamic_intervals'):
        loop['dynamic_intervals'] = [(max(1, round(begin * ratio)), interval)
                                     for begin, interval in loop['dynamic_intervals']]
    for hook in config.get('custom_hooks') or []:
        if not isinstance(hook, MutableMapping):
            continue
        # Of the augmentations: at least the last epoch is without the strong ones.
        if 'num_last_epochs' in hook:
            hook['num_last_epochs'] = max(1, round(hook['num_last_epochs'] * ratio))
        if 'switch_epoch' in hook:
            last = length - 1 if by_epoch else length
            hook['switch_epoch'] = min(round(hook['switch_epoch'] * ratio), last)
    if not any(key.startswith('param_scheduler') for key in options or ()):
        _stretch_schedulers(config, by_epoch, length, ratio, iterations)


def _stretch_schedulers(config: Config, by_epoch: bool, length: int, ratio: float,
                        iterations: int | None) -> None:
    moved: dict[int, int] = {}  # ends of warm-ups, where other schedulers begin
    for scheduler in _schedulers(config):
        counts_epochs = scheduler.get('by_epoch', True)
        if _is_warm_up(scheduler):
            if not counts_epochs and iterations:
                most = _WARM_UP_SHARE * iterations
            elif counts_epochs:
                most = _WARM_UP_SHARE * length
            else:
                continue
            # mmengine reaches the full rate at the step before the end: with 1, never.
            end = min(scheduler['end'], max(2, round(most)))
            moved[scheduler['end']] = scheduler['end'] = end
            continue
        if counts_epochs == by_epoch:
            stretch, most = ratio, length
        elif iterations and not counts_epochs:  # it was made for another number of steps
            old = max([value for value in (scheduler.get('end'), scheduler.get('T_max'))
                       if value and value != math.inf], default=iterations)
            stretch, most = iterations / old, iterations
        else:
            continue
        begin, end = scheduler.get('begin', 0), scheduler.get('end', math.inf)
        is_whole = scheduler.get('T_max') == end - begin  # a cosine that reaches its end
        for key in _LENGTHS:
            value = scheduler.get(key)
            if key == 'begin' and value in moved:
                scheduler[key] = moved[value]
            elif key == 'milestones' and value:
                steps = {max(1, round(step * stretch)) for step in value}
                scheduler[key] = sorted(step for step in steps if step < most) or [most]
            elif key == 'periods' and value:
                scheduler[key] = [max(1, round(step * stretch)) for step in value]
            elif value and value != math.inf:
                scheduler[key] = max(1, round(value * stretch))
        if scheduler.get('begin'):  # what begins in the middle of a single epoch takes all of it
            scheduler['begin'] = min(scheduler['begin'], scheduler.get('end', most) - 1)
        if is_whole:
            scheduler['T_max'] = scheduler['end'] - scheduler.get('begin', 0)


def _schedulers(config: Config) -> Iterator[MutableMapping[str, Any]]:
    """Yield the configs of all schedulers."""
    parts = config.get('param_scheduler')
    if isinstance(parts, MutableMapping) and 'type' not in parts:  # of several optimizers
        parts = [part for value in parts.values()
                 for part in (value if isinstance(value, list | tuple) else [value])]
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        if isinstance(part, MutableMapping):
            yield part


def _is_warm_up(scheduler: Mapping[str, Any]) -> bool:
    kind = str(getattr(scheduler.get('type'), '__name__', scheduler.get('type')))
    starts_low = scheduler.get('start_factor', scheduler.get('factor', 1 / 3)) < 1
    return (kind.rpartition('.')[2] in _WARM_UPS and not scheduler.get('begin')
            and starts_low and isinstance(scheduler.get('end'), int))


def _processes(config: Config) -> int:
    """Return the number of processes; on GPUs, the runner starts their group only later."""
    if config.get('launcher', 'none') == 'none':
        return 1
    names = ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
    return next((int(os.environ[name]) for name in names if name in os.environ), 1)


def _repeats(dataset: Any) -> int:
    """Return how often a dataset's wrappers repeat it."""
    times = 1
    while isinstance(dataset, Mapping) and isinstance(dataset.get('dataset'), Mapping):
        times *= dataset.get('times', 1)
        dataset = dataset['dataset']
    return times


# --- learning rate ----------------------------------------------------------------------------


def _fit_rate(config: Config, own_batch: int, batch: int, processes: int, rate: float | None,
              options: set[str]) -> float | None:
    """Scale the learning rate with the batch size, and return it; None if there are several."""
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    if rate:
        _set_rate(config, rate)
        return rate
    if not isinstance(optimizer, Mapping) or 'lr' not in optimizer:
        return None
    scaling = config.get('auto_scale_lr') or {}
    if 'optim_wrapper.optimizer.lr' in options or scaling.get('enable'):
        return optimizer['lr']
    base = scaling.get('base_batch_size') or own_batch * processes
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    ratio = batch * processes * accumulated / base
    rate = optimizer['lr'] * (math.sqrt(ratio) if 'Adam' in str(optimizer.get('type')) else ratio)
    _set_rate(config, rate)
    if 'base_batch_size' in scaling:  # the rate is for this batch from here on
        scaling['base_batch_size'] = batch * processes * accumulated
    return rate


def _set_rate(config: Config, rate: float) -> None:
    """Set the learning rate, and scale the rates that its schedule ends at.

    Raises:
        ConfigError: If there are several optimizers.
    """
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer')
    if not isinstance(optimizer, MutableMapping) or 'lr' not in optimizer:
        raise ConfigError('--lr needs one optimizer: optim_wrapper.optimizer.lr in the config')
    for scheduler in _schedulers(config):
        if scheduler.get('eta_min'):
            scheduler['eta_min'] *= rate / optimizer['lr']
    optimizer['lr'] = rate


# --- metrics, options and messages ------------------------------------------------------------


def _main_metric(config: Config) -> str | None:
    """Return the metric that tells the best of several checkpoints; None if it is unknown."""
    evaluators = config.get('val_evaluator')
    for part in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
        if not isinstance(part, Mapping) or part.get('prefix'):
            continue
        kind = str(getattr(part.get('type'), '__name__', part.get('type'))).rpartition('.')[2]
        if kind.endswith('CocoMetric'):
            metrics = part.get('metric', 'bbox')
            metrics = metrics if isinstance(metrics, list | tuple) else [metrics]
            best = next((name for name in ('segm', 'bbox') if name in metrics), None)
            return f'coco/{best}_mAP' if best else None
        if kind.endswith('IoUMetric') and 'mIoU' in part.get('iou_metrics', ['mIoU']):
            return 'mIoU'
    return None


def _set(config: Config, path: str, value: Any, options: set[str]) -> None:
    """Set a value below parts that the config has, unless the user has set it."""
    *parents, key = path.split('.')
    part: Any = config
    for name in parents:
        part = part.get(name) if isinstance(part, Mapping | Config) else None
    if isinstance(part, MutableMapping) and path not in options:
        part[key] = value


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"s" * (number != 1)}'


def _log(text: str) -> None:
    print_log(f'recipe: {text}', logger='current', level=logging.INFO)


def _warn(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
