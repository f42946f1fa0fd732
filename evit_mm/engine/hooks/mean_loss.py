"""Losses of distributed runs in the log."""

from typing import Any

import torch
from mmengine.dist import all_reduce_dict
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

__all__ = ['MeanLossHook']


@HOOKS.register_module()
class MeanLossHook(Hook):
    """Hook that logs the mean of all processes' losses, where mmengine logs the first process's."""

    priority = 'HIGHEST'  # before RuntimeInfoHook logs the losses

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        """Replace the losses in ``outputs``, whose keys must be the same in all processes."""
        if outputs:
            losses = {key: value.detach().clone() for key, value in sorted(outputs.items())
                      if isinstance(value, torch.Tensor)}
            all_reduce_dict(losses, op='mean')
            outputs.update(losses)
