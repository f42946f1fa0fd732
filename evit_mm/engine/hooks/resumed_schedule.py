"""What a resumed run does with a schedule that was changed in the config."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...errors import UserError

__all__ = ['ResumedScheduleHook']

# What changes with every step; the rest of a scheduler's state comes from the config.
_PROGRESS = ('last_step', '_global_step', '_last_value', 'base_values', 'verbose')


@HOOKS.register_module()
class ResumedScheduleHook(Hook):
    """Hook that compares the schedule of a checkpoint with that of the config.

    mmengine takes learning rates, weight decay, milestones and everything else of the optimizer and
    its schedulers from the checkpoint, so that a change in the config has no effect.

    Args:
        use_config: Train on with the config's schedule, at the place where the checkpoint stands.
            By default the checkpoint's is kept, with a warning that lists the differences.
    """

    def __init__(self, use_config: bool = False) -> None:
        self.use_config = use_config

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the schedules, and put the config's into the checkpoint if it shall be used.

        Raises:
            UserError: If it shall be used, and the run has several optimizers or a schedule that
                depends on metrics; if the optimizer has other groups of parameters.
        """
        if not runner._resume or 'optimizer' not in checkpoint:
            return
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        schedulers = runner.param_schedulers
        if optimizer is None or not isinstance(schedulers, list):
            if self.use_config:
                raise UserError('--new-schedule works with one optimizer, and this config has '
                                'several: leave it out')
            return
        saved = checkpoint['optimizer'].get('param_groups', [])
        if len(saved) != len(optimizer.param_groups):
            raise UserError('the checkpoint can\'t be resumed from: its optimizer has '
                            f'{len(saved)} groups of parameters, the config\'s '
                            f'{len(optimizer.param_groups)}; '
                            'restore optim_wrapper.paramwise_cfg, or start from its weights with '
                            'load_from')
        differences = [
            *_different_groups(saved, optimizer.param_groups),
            *_different_schedulers(checkpoint.get('param_schedulers') or [], schedulers)]
        if not differences:
            return
        text = ', '.join(dict.fromkeys(differences))
        if not self.use_config:
            print_log('the schedule of the checkpoint is kept, and what the config changes of it '
                      f'has no effect: {text}; pass --new-schedule to use the config\'s',
                      logger='current', level=logging.WARNING)
            return
        print_log(f'the config\'s schedule replaces that of the checkpoint: {text}',
                  logger='current')
        if any(hasattr(scheduler, 'monitor') for scheduler in schedulers):
            raise UserError('--new-schedule can\'t tell the rate that a schedule which follows a '
                            'metric would have reached: leave it out')
        meta = checkpoint.get('meta') or {}
        _fast_forward(schedulers, meta.get('iter', 0), meta.get('epoch', 0),
                      len(runner.train_loop.dataloader))
        for old, new in zip(saved, optimizer.param_groups, strict=True):
            old.update({key: value for key, value in new.items() if key != 'params'})
        state = runner.optim_wrapper.state_dict()
        if 'base_param_settings' in state:
            checkpoint['optimizer']['base_param_settings'] = state['base_param_settings']
        checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]


def _different_groups(saved: list[dict[str, Any]], current: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the settings of the optimizer that differ, before any step of a schedule."""
    for old, new in zip(saved, current, strict=False):
        for key in new:
            if key == 'params' or key == 'lr' and 'initial_lr' in old or key not in old:
                continue
            name = 'lr' if key == 'initial_lr' else key
            if _plain(old[key]) != _plain(new[key]):
                yield f'{name} {old[key]:g} (config: {new[key]:g})' if isinstance(
                    new[key], float) else f'{name} {old[key]} (config: {new[key]})'


def _different_schedulers(saved: list[Mapping[str, Any]], current: list[Any]) -> Iterator[str]:
    if len(saved) != len(current):
        yield f'{len(saved)} schedulers (config: {len(current)})'
        return
    for old, scheduler in zip(saved, current, strict=True):
        new = scheduler.state_dict()
        name = type(scheduler).__name__
        if set(old) != set(new):
            yield f'another scheduler (config: {name})'
            continue
        for key in new:
            if key not in _PROGRESS and _plain(old[key]) != _plain(new[key]):
                yield f'{key} {_short(old[key])} (config: {_short(new[key])})'


def _plain(value: Any) -> Any:
    """Return a value in a form that compares equal after it was saved and loaded."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> Any:
    """Return milestones, which are counted in a dict, as a list."""
    return sorted(value) if isinstance(value, Mapping) else value


def _fast_forward(schedulers: list[Any], iterations: int, epochs: int, per_epoch: int) -> None:
    """Step schedulers as a training would have until it reached an iteration and epoch."""
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the optimizer made its steps in the run before
        for iteration in range(1, iterations + 1):
            for scheduler in by_iteration:
                scheduler.step()
            if iteration % per_epoch == 0 and iteration <= per_epoch * epochs:
                for scheduler in by_epoch:
                    scheduler.step()
