"""The best checkpoint of a training."""

import logging
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

__all__ = ['BestCheckpointHook']


@HOOKS.register_module()
class BestCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, which does not fail where a validation lacks the metric.

    MMDetection's metrics report nothing while a detector detects nothing, as it may at first.
    """

    def after_val_epoch(self, runner: Any, metrics: dict[str, float]) -> None:
        """Save the checkpoint if it is the best one so far."""
        wanted = [name for name in self.save_best or [] if name != 'auto']
        lacking = [name for name in wanted if name not in metrics]
        if lacking or not metrics:
            print_log(f'this validation has no {", ".join(lacking) or "metric"}: it is not among '
                      'those that the best checkpoint is chosen from', logger='current',
                      level=logging.WARNING)
            return
        super().after_val_epoch(runner, metrics)
