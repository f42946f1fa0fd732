"""Images that could not be loaded during a training."""

import logging
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log

__all__ = ['SkippedImagesHook']


class SkippedImagesHook(Hook):
    """Hook that logs each image that the dataloader has replaced, and counts them at the end.

    It needs a loop of `evit_mm.engine.loops`, to which the workers report.
    """

    def __init__(self) -> None:
        self._count = 0
        self._files: set[str] = set()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Log what came with a batch."""
        messages = getattr(runner.train_loop, 'skipped_images', None)
        if not messages:
            return
        for text in messages:
            if text not in self._files:
                print_log(f'{text} (another image takes its place)', logger='current',
                          level=logging.WARNING)
        self._count += len(messages)
        self._files.update(messages)
        messages.clear()

    def after_train(self, runner: Any) -> None:
        """Log the number of all processes."""
        gathered = all_gather_object((self._count, self._files))
        count = sum(number for number, _ in gathered)
        if count:
            files = set().union(*(names for _, names in gathered))
            print_log(f'{len(files)} images could not be loaded and were replaced {count} times; '
                      'the log names them', logger='current', level=logging.WARNING)
