"""Tables and figures of a run, in its work dir."""

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from ...errors import UserError
from ...report.evaluation import Evaluation
from ...report.figures import draw_confusion, draw_curves, draw_precision, read_log

__all__ = ['ReportHook', 'progress_name']

_CURVES_SECONDS = 300.0  # between drawings during a training


@HOOKS.register_module()
class ReportHook(Hook):
    """Hook that writes what people look at into the work dir.

    After each validation, ``metrics/epoch_N.csv`` and ``.json`` have the metrics of each class.
    After the training, ``curves.png`` shows losses, learning rate and metrics, and figures in
    ``metrics/`` show precision and recall and the confusion of the last validation. A test writes
    the same as ``metrics/test_CHECKPOINT``. Evaluators whose metrics have an `Evaluation` are
    reported. What can't be written is logged, and does not end a run.
    """

    priority = 'LOW'  # after LoggerHook has written its scalars

    def __init__(self) -> None:
        self._drawn = time.monotonic()
        self._latest: list[tuple[Path, Evaluation]] = []

    @master_only
    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Write the tables, and from time to time the curves."""
        self._latest = _write_tables(runner, runner.val_loop.evaluator, progress_name(runner),
                                     metrics or {})
        if time.monotonic() - self._drawn > _CURVES_SECONDS:
            self._draw_curves(runner)

    @master_only
    def after_train(self, runner: Any) -> None:
        """Draw the curves, and the figures of the last validation."""
        self._draw_curves(runner)
        self._draw_latest()

    @master_only
    def after_test_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Write tables and figures of a test."""
        checkpoint = Path(str(runner._load_from or 'model').rstrip('/')).stem
        self._latest = _write_tables(runner, runner.test_loop.evaluator,
                                     f'test_{checkpoint.rpartition(":")[2]}', metrics or {})
        self._draw_latest()

    def _draw_curves(self, runner: Any) -> None:
        self._drawn = time.monotonic()
        if not _has_matplotlib():
            return
        loop = runner.train_loop
        length = len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None
        path = Path(runner.work_dir, 'curves.png')
        drawn: list[bool] = []
        _attempt(lambda: drawn.append(draw_curves(read_log(Path(runner.work_dir)), path,
                                                  iterations_per_epoch=length)))
        if drawn == [False]:
            print_log(f'no curves in {path}, as nothing was logged', logger='current')

    def _draw_latest(self) -> None:
        if not self._latest or not _has_matplotlib():
            return
        for stem, evaluation in self._latest:
            for name in evaluation.precision:
                _attempt(lambda stem=stem, evaluation=evaluation, name=name:  # type: ignore[misc]
                         draw_precision(evaluation, name, stem.with_name(
                             f'{stem.name}_{name}_precision_recall.png')))
            if evaluation.confusion is not None:
                _attempt(lambda stem=stem, evaluation=evaluation:  # type: ignore[misc]
                         draw_confusion(evaluation, stem.with_name(f'{stem.name}_confusion.png')))
        print_log(f'tables and figures of the evaluation are in {self._latest[0][0].parent}',
                  logger='current')


def progress_name(runner: Any) -> str:
    """Return how far a training is, in the words of its checkpoints: ``epoch_3``, ``iter_400``."""
    # The property would build a loop, and fail where there is no training.
    if isinstance(runner._train_loop, EpochBasedTrainLoop):
        return f'epoch_{runner.epoch}'
    return f'iter_{runner.iter}'


def _write_tables(runner: Any, evaluator: Any, name: str, metrics: Mapping[str, float]
                  ) -> list[tuple[Path, Evaluation]]:
    """Write the tables of all evaluations, and return each with the path of its files."""
    evaluations = list(_evaluations(evaluator))
    written = []
    for number, evaluation in enumerate(evaluations):
        stem = Path(runner.work_dir, 'metrics', name + (f'_{number + 1}' if number else ''))
        _attempt(lambda stem=stem, evaluation=evaluation:  # type: ignore[misc]
                 evaluation.write(stem, metrics))
        written.append((stem, evaluation))
    return written


def _evaluations(evaluator: Any) -> Iterator[Evaluation]:
    for metric in getattr(evaluator, 'metrics', ()):
        evaluation = getattr(metric, 'evaluation', None)
        if isinstance(evaluation, Evaluation):
            yield evaluation


def _attempt(write: Callable[[], Any]) -> None:
    """Write a file, or log why it can't be written."""
    try:
        write()
    except (UserError, OSError) as error:
        print_log(str(error), logger='current', level=logging.WARNING)


def _has_matplotlib() -> bool:
    if importlib.util.find_spec('matplotlib'):
        return True
    print_log('no figures, as matplotlib is not installed: pip install matplotlib',
              logger='current')
    return False
