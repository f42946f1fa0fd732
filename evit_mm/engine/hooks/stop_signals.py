"""SIGTERM and Ctrl-C: a training saves a checkpoint and ends."""

import os
import signal
import threading
from typing import Any

from mmengine.dist import is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ...errors import Interrupted, Terminated
from ..processes import any_process
from ..resume_point import describe_latest
from .checkpoint import SafeCheckpointHook

__all__ = ['StopSignalHook']

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@HOOKS.register_module()
class StopSignalHook(Hook):
    """Hook that saves a checkpoint after the iteration in which SIGTERM or Ctrl-C arrives.

    Then it ends the training, with `Interrupted` (a KeyboardInterrupt) after Ctrl-C and
    `Terminated` (a SystemExit of status 143) after SIGTERM, as schedulers send it before they kill.
    A second signal ends it at once. In a validation the training ends at the next image, unless
    several processes would have to write a checkpoint together there.

    It needs `SafeCheckpointHook`, and within an epoch a loop of `evit_mm.engine.loops`; otherwise
    it ends the training without a checkpoint of its own.
    """

    priority = 'LOWEST'  # after the checkpoint hook

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def before_train(self, runner: Any) -> None:
        """Handle the signals from here on."""
        self._work_dir = runner.work_dir
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """End the training, unless the epoch ends here too or a step is not complete."""
        if not self._wanted() or not getattr(runner.optim_wrapper, 'should_update',
                                             lambda: True)():
            return
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            if batch_idx + 1 == len(loop.dataloader):
                return
            if not hasattr(loop, 'progress'):
                self._end(f'stopped in iteration {runner.iter + 1}')
        self._save_and_end(runner, iteration=runner.iter + 1, epoch=runner.epoch)

    def after_train_epoch(self, runner: Any) -> None:
        """End the training between two epochs."""
        # The other loop calls this when it is at its end.
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and self._wanted():
            self._save_and_end(runner, iteration=runner.iter, epoch=runner.epoch + 1)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                       outputs: Any = None) -> None:
        """End the training in a validation."""
        if self._signal is None or not self._before:
            return
        checkpoints = _checkpoint_hook(runner)
        saved = checkpoints is not None and checkpoints.last_iteration == runner.iter
        if is_distributed() and not saved:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                hook.after_val_epoch(runner)  # puts the weights of the training back
        self._save_and_end(runner, iteration=runner.iter, epoch=runner.epoch)

    def after_train(self, runner: Any) -> None:
        """Leave the signals to whoever handled them before."""
        self.close()

    def close(self) -> None:
        """Leave the signals to whoever handled them before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        if os.getpid() != self._process:  # a worker that was forked
            return
        if self._signal is not None:
            self._signal = number
            self._end('stopped at once')
        self._signal = number
        # Not by print: it may have been interrupted itself.
        os.write(2, f'{signal.Signals(number).name}: saving a checkpoint after this iteration; '
                    'once more stops at once\n'.encode())

    def _wanted(self) -> bool:
        """Return whether any process has received a signal."""
        # All processes take part, whichever of them has one.
        return any_process(self._signal is not None)

    def _save_and_end(self, runner: Any, *, iteration: int, epoch: int) -> None:
        checkpoints = _checkpoint_hook(runner)
        if checkpoints is None:
            self._end(f'stopped after iteration {iteration}')
        else:
            path = checkpoints.save_now(runner, iteration=iteration, epoch=epoch)
            self._end(f'stopped after iteration {iteration}, which is saved as {path}', '')

    def _end(self, what: str, advice: str | None = None) -> None:
        text = what if advice == '' else f'{what}; {describe_latest(self._work_dir)}'
        if self._signal == signal.SIGINT:
            raise Interrupted(text)
        raise Terminated(text)


def _checkpoint_hook(runner: Any) -> SafeCheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)), None)
