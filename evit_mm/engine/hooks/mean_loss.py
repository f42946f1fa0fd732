"""Hooks that the tools add to every run."""

from typing import Any

import torch
from mmengine.dist import all_reduce_dict
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

__all__ = ['MeanLossHook']


@HOOKS.register_module()
class MeanLossHook(Hook):
    """Log the mean of all processes' losses, where mmengine logs those of the first."""

    priority = 'HIGHEST'  # before RuntimeInfoHook takes the losses to the log

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        """Replace the losses in ``outputs``; a key must not be missing on any process."""
        if outputs:
            losses = {key: value.detach().clone() for key, value in sorted(outputs.items())
                      if isinstance(value, torch.Tensor)}
            all_reduce_dict(losses, op='mean')
            outputs.update(losses)
