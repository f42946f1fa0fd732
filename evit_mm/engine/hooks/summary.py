"""A short summary of a run, when it starts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from .. import preflight
from ..console import show_everything
from ..initial_checkpoint import initial_checkpoint
from ..model_parts import plain_model
from .acceleration import Acceleration

__all__ = ['SummaryHook']


class SummaryHook(Hook):
    """Hook that logs what is going to run, and then lets the terminal show all messages.

    It comes after everything that can go wrong before the first iteration.

    Args:
        acceleration: What makes the model faster in this run.
    """

    priority = 'VERY_LOW'

    def __init__(self, acceleration: Acceleration) -> None:
        self._acceleration = acceleration
        self._done = False

    def before_train(self, runner: Any) -> None:
        """Log the summary of a training."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            steps = len(loop.dataloader)
            length = f'{_count(loop.max_epochs, "epoch")} of {_count(steps, "iteration")}'
        else:
            length = _count(loop.max_iters, 'iteration')
        rows = {'training': f'{_describe_dataset(loop.dataloader.dataset)}, {length}'}
        if runner.val_loop is not None:
            rows['validation'] = _describe_dataset(runner.val_loop.dataloader.dataset)
        batch_size = preflight.describe_batch_size(runner.cfg, runner.world_size)
        if batch_size:
            rows['batches'] = batch_size
        self._log(runner, 'Training', rows)

    def before_test(self, runner: Any) -> None:
        """Log the summary of a test."""
        self._log(runner, 'Testing',
                  {'images': _describe_dataset(runner.test_loop.dataloader.dataset)})

    def _log(self, runner: Any, title: str, rows: Mapping[str, str]) -> None:
        if self._done:
            return
        self._done = True
        model = plain_model(runner.model)
        log_file = getattr(runner.logger, 'log_file', None)
        rows = {
            'work dir': runner.work_dir,
            'log': os.path.relpath(log_file, runner.work_dir) if log_file else 'none',
            'device': _describe_device(model),
            'model': _describe_model(model),
            **rows,
            'weights': _describe_weights(runner, model)}
        if self._acceleration:
            rows['speed-ups'] = str(self._acceleration)
        show_everything(runner.logger)
        name = Path(runner.cfg.filename).stem if runner.cfg.filename else 'a config'
        runner.logger.info('\n'.join([f'{title} {name}', *(
            f'  {label + ":":<12}{text}' for label, text in rows.items())]))


def _describe_dataset(dataset: Any) -> str:
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    try:
        images = _count(len(dataset), 'image')
    except TypeError:  # of an iterable dataset
        images = 'a stream of images'
    return images + (f' of {_count(len(classes), "class")}' if classes else '')


def _describe_device(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    if parameter is None:  # an exported file
        return 'that of the file\'s runtime'
    device = parameter.device
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{device.type}, {_count(torch.get_num_threads(), "thread")}'


def _describe_model(model: nn.Module) -> str:
    """Return the types of a model and its parts, and its size."""
    parts = []
    for name, part in model.named_children():
        if name != 'data_preprocessor':
            arch = getattr(part, 'arch_name', None)
            parts.append(type(part).__name__ + (f' {arch}' if arch else ''))
    size = sum(parameter.numel() for parameter in model.parameters())
    return f'{type(model).__name__} ({", ".join(parts)}), {size / 1e6:.1f} M parameters'


def _describe_weights(runner: Any, model: nn.Module) -> str:
    source, resumes = initial_checkpoint(runner)
    if resumes:
        return f'{source}, resumed at iteration {runner.iter}'
    if source:
        return str(source)
    if next(model.parameters(), None) is None:
        return 'those of the exported file'
    pretrained = [f'{init_cfg["checkpoint"]} in the {name}'
                  for name, part in model.named_children()
                  for init_cfg in [getattr(part, 'init_cfg', None)]
                  if isinstance(init_cfg, Mapping) and init_cfg.get('checkpoint')]
    return f'{", ".join(pretrained)}, random elsewhere' if pretrained else 'random'


def _count(number: int, noun: str) -> str:
    plural = 'es' if noun.endswith('s') else 's'
    return f'{number} {noun}{"" if number == 1 else plural}'
