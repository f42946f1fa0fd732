"""The moment from which errors are no longer due to the config."""

from typing import Any

from mmengine.hooks import Hook

__all__ = ['FirstIterationHook']


class FirstIterationHook(Hook):
    """Hook that records that the first iteration has begun.

    Attributes:
        reached: Whether a batch has arrived.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.reached = False

    def before_train_iter(self, *_: Any, **__: Any) -> None:
        """Record the first batch of a training."""
        self.reached = True

    def before_test_iter(self, *_: Any, **__: Any) -> None:
        """Record the first batch of a test."""
        self.reached = True
