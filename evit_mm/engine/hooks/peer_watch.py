"""Other processes of a distributed training, which may die."""

from typing import Any

from mmengine.hooks import Hook

from ..processes import PeerWatch

__all__ = ['PeerWatchHook']


class PeerWatchHook(Hook):
    """Hook that watches the other processes while they have to be there.

    That is until the last iteration: afterwards, a process may end before the others.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._watch: PeerWatch | None = None

    def before_train(self, runner: Any) -> None:
        """Start watching."""
        if runner.max_iters - runner.iter > 1:
            self._watch = PeerWatch(runner.work_dir)
            self._watch.start()

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Stop watching after the last iteration but one."""
        if self._watch is not None and runner.iter + 2 >= runner.max_iters:
            self._watch.stop()
            self._watch = None

    def after_train(self, runner: Any) -> None:
        """Stop watching where a training ends early."""
        if self._watch is not None:
            self._watch.stop()
