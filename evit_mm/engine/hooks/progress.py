"""How far a run is, on a terminal and in a log."""

import shutil
import sys
import time
from contextlib import ExitStack
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..console import hide_iterations

__all__ = ['ProgressHook']

_SECONDS = 60.0  # without a line in the log
_REFRESH = 1.0  # seconds between two looks at the losses
_MOST_LOSSES = 4


@HOOKS.register_module()
class ProgressHook(Hook):
    """Hook that shows a progress bar on a terminal, and logs often enough elsewhere.

    The bar shows iterations, losses, learning rate and the time left; its place is below the other
    lines, and the lines of single iterations go to the log file alone. Where stdout is not a
    terminal, the first iteration is logged at once, and then at least one in each minute.

    Args:
        terminal: Whether to show a bar; None does so if stdout is a terminal.
    """

    priority = 'VERY_LOW'  # after LoggerHook

    def __init__(self, terminal: bool | None = None) -> None:
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._bar: Any = None
        self._inner_bar: Any = None
        self._redirected = ExitStack()
        self._refreshed = 0.0
        self._logged: float | None = None

    def before_train(self, runner: Any) -> None:
        """Show the bar of a training, which may resume."""
        if self._starts():
            self._redirect(runner)
            self._bar = _bar('training', runner.max_iters, initial=runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Move the bar, or log an iteration that LoggerHook does not."""
        now = time.monotonic()
        if self._bar is not None:
            if now - self._refreshed > _REFRESH:
                self._refreshed = now
                self._bar.set_postfix_str(_describe(runner), refresh=False)
            self._bar.update()
        elif not self._terminal and is_main_process():
            if _is_logged(runner, batch_idx):
                self._logged = now
            elif self._logged is None or now - self._logged > _SECONDS:
                self._logged = now
                tag, text = runner.log_processor.get_log_after_iter(runner, batch_idx, 'train')
                runner.logger.info(text)
                runner.visualizer.add_scalars(tag, step=runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        """Remove the bar."""
        self._close()

    def before_val_epoch(self, runner: Any) -> None:
        """Show the bar of a validation, which is removed when it ends."""
        if self._bar is not None:
            self._inner_bar = _bar('validating', len(runner.val_dataloader), leave=False)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                       outputs: Any = None) -> None:
        """Move the bar of the validation."""
        if self._inner_bar is not None:
            self._inner_bar.update()
            if batch_idx + 1 == len(runner.val_dataloader):  # before the metrics are printed
                self._inner_bar.close()
                self._inner_bar = None

    def before_test(self, runner: Any) -> None:
        """Show the bar of a test."""
        if self._starts():
            self._redirect(runner)
            self._bar = _bar('testing', len(runner.test_dataloader))

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                        outputs: Any = None) -> None:
        """Move the bar of the test."""
        if self._bar is not None:
            self._bar.update()
            if batch_idx + 1 == len(runner.test_dataloader):
                self._close()

    def close(self) -> None:
        """Remove what a run that failed has left on the terminal."""
        self._close()

    def _starts(self) -> bool:
        return self._terminal and self._bar is None and is_main_process()

    def _redirect(self, runner: Any) -> None:
        self._redirected.enter_context(hide_iterations(runner.logger))
        self._redirected.enter_context(logging_redirect_tqdm([runner.logger]))

    def _close(self) -> None:
        for bar in (self._inner_bar, self._bar):
            if bar is not None:
                bar.close()
        self._bar = self._inner_bar = None
        self._redirected.close()


def _bar(title: str, total: int, *, initial: int = 0, leave: bool = True) -> Any:
    # tqdm shows nothing on a terminal that does not tell its size; this takes 80 x 24 then.
    size = shutil.get_terminal_size()
    return tqdm(desc=title, total=total, initial=initial, leave=leave, file=sys.stdout, unit='it',
                ncols=size.columns - 1, nrows=size.lines, mininterval=0.5)


def _describe(runner: Any) -> str:
    """Return the latest loss, learning rate and parts of the loss; a narrow terminal cuts parts."""
    scalars = {name.removeprefix('train/'): buffer.current()
               for name, buffer in runner.message_hub.log_scalars.items()
               if name.startswith('train/')}
    parts = [name for name in scalars if 'loss' in name and name != 'loss'][:_MOST_LOSSES]
    return ', '.join(f'{name.replace("loss_", "")} {scalars[name]:.3g}'
                     for name in ('loss', 'lr', *parts) if name in scalars)


def _is_logged(runner: Any, batch_idx: int) -> bool:
    """Return whether mmengine's LoggerHook logs an iteration."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, LoggerHook)), None)
    if hook is None:
        return False
    dataloader = runner.train_dataloader
    return hook.every_n_inner_iters(batch_idx, hook.interval) or (
        hook.end_of_epoch(dataloader, batch_idx)
        and (not hook.ignore_last or len(dataloader) <= hook.interval))
