"""Figures of a training and of an evaluation."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .evaluation import Evaluation

__all__ = ['Log', 'draw_confusion', 'draw_curves', 'draw_precision', 'read_log']

# What mmengine logs beside losses, rates and metrics.
_OTHERS = ('data_time', 'time', 'step', 'iter', 'epoch', 'memory', 'grad_norm')
_MOST_NUMBERS = 20  # classes up to which the cells of a confusion matrix show their numbers


class Log:
    """Scalars that a training logged, as (step, value) by name.

    Attributes:
        train: Losses and learning rates, by iteration.
        val: Metrics, by epoch or by iteration, as the run counted.
    """

    def __init__(self) -> None:
        self.train: dict[str, list[tuple[int, float]]] = {}
        self.val: dict[str, list[tuple[int, float]]] = {}

    def drop_from(self, iteration: int, epoch: int | None) -> None:
        """Forget what a resumed run computes again."""
        for scalars, first in ((self.train, iteration), (self.val, epoch or iteration)):
            for name in scalars:
                scalars[name] = [(step, value) for step, value in scalars[name] if step < first]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of mmengine's scalars.json."""
        scalars = self.train if 'loss' in entry else self.val
        for name, value in entry.items():
            if name not in _OTHERS and isinstance(value, int | float):
                scalars.setdefault(name, []).append((int(entry['step']), float(value)))


def read_log(work_dir: Path) -> Log:
    """Read the scalars of all runs in a work dir, in the order in which they were started.

    A run that resumed at a step replaces what an earlier one logged from there on.
    """
    log = Log()
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        entries = [entry for entry in map(_parse, path.read_text(encoding='utf-8').splitlines())
                   if 'step' in entry]
        first = next((entry for entry in entries if 'loss' in entry), None)
        if first is None:
            continue
        log.drop_from(int(first['step']), first.get('epoch'))
        for entry in entries:
            log.add(entry)
    return log


def _parse(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return {}
    return entry if isinstance(entry, dict) else {}


def draw_curves(log: Log, path: Path, *, iterations_per_epoch: int | None = None) -> bool:
    """Draw losses, learning rate and metrics over the training.

    Args:
        log: What the training logged.
        path: The file; its suffix names the format.
        iterations_per_epoch: Number of iterations in an epoch, if the metrics are those of epochs.

    Returns:
        Whether there was anything to draw.

    Raises:
        UserError: If the file can't be written.
    """
    from ..benchmark.figures import drawing

    losses = {name: points for name, points in log.train.items() if 'loss' in name and points}
    rates = {name: points for name, points in log.train.items()
             if name.rpartition('/')[2] in ('lr', 'base_lr') and points}
    if 'lr' in rates:
        rates.pop('base_lr', None)
    panels = [(title, scalars) for title, scalars in (
        ('loss', losses), ('learning rate', rates), ('metric', {
            name: points for name, points in log.val.items()
            if any(value != -1 for _, value in points)})) if scalars]
    if not panels:
        return False
    with drawing(path, width=7, height=0.4 + 2.6 * len(panels)) as figure:
        for number, (title, scalars) in enumerate(panels, 1):
            axes = figure.add_subplot(len(panels), 1, number,
                                      sharex=figure.axes[0] if figure.axes else None)
            for k, (name, points) in enumerate(scalars.items()):
                steps, values = np.array(points, float).T
                if title != 'metric' and iterations_per_epoch:
                    steps = steps / iterations_per_epoch
                values = np.where((values == -1) & (title == 'metric'), np.nan, values)
                axes.plot(steps, values, color=_line_colour(k, name), label=name,
                          marker='o' if title == 'metric' or len(points) == 1 else None,
                          linewidth=2 if name == 'loss' else 1.2)
            axes.set_ylabel(title)
            if title == 'loss' and all(value > 0 for points in losses.values()
                                       for _, value in points):
                axes.set_yscale('log')
            axes.grid(True)
            if len(scalars) > 1 or title == 'metric':
                axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
        axes.set_xlabel('epoch' if iterations_per_epoch else 'iteration')
    return True


def draw_precision(evaluation: Evaluation, name: str, path: Path) -> None:
    """Draw precision over recall at IoU 0.5, for each class and on average.

    Args:
        evaluation: An evaluation with ``precision``.
        name: The metric.
        path: The file; its suffix names the format.

    Raises:
        UserError: If the file can't be written.
    """
    from ..benchmark.figures import drawing

    precision = np.where(evaluation.precision[name] < 0, np.nan, evaluation.precision[name])
    recalls = np.linspace(0, 1, len(precision))
    known: npt.NDArray[np.bool_] = np.logical_not(np.isnan(precision).all(axis=0))
    areas = np.where(known, np.nan_to_num(precision).mean(0), np.nan)
    with drawing(path, width=7, height=4.5) as figure:
        axes = figure.add_subplot()
        # The legend has room for some; the lines of the others are thin and grey.
        named = [k for k in np.argsort(-np.nan_to_num(areas, nan=-1)) if known[k]][:_MOST_NUMBERS]
        for k in np.flatnonzero(known):
            if k not in named:
                axes.plot(recalls, precision[:, k], color='#CCCCCC', linewidth=0.6)
        for position, k in enumerate(named):
            axes.plot(recalls, precision[:, k], color=_line_colour(position), linewidth=1,
                      label=f'{_plain(evaluation.classes[k])} {areas[k]:.3f}')
        if known.any():
            axes.plot(recalls, precision[:, known].mean(1), color='black', linewidth=2.2,
                      label=f'mean of {known.sum()} classes {areas[known].mean():.3f}')
            axes.legend(title='AP at IoU 0.5', loc='center left', bbox_to_anchor=(1, 0.5))
        axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02),
                 title=f'{name}: precision and recall at IoU 0.5')
        axes.grid(True)


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """Draw a confusion matrix, as the part of each true class that went to each predicted class.

    Args:
        evaluation: An evaluation with ``confusion``.
        path: The file; its suffix names the format.

    Raises:
        UserError: If the file can't be written.
    """
    from ..benchmark.figures import drawing

    counts: npt.NDArray[Any] = np.asarray(evaluation.confusion)
    totals = counts.sum(1, keepdims=True)
    percent = 100 * np.divide(counts, totals, out=np.full(counts.shape, math.nan),
                              where=totals > 0)
    names = [_plain(name) for name in evaluation.classes]
    rows, columns = list(names), list(names)
    if len(counts) > len(names):
        rows.append('(background)')
        columns.append('(missed)')
    numbered = len(names) <= _MOST_NUMBERS
    # Inches from a row to the next, for a number or for a name, and the size of the names.
    pitch, size = (0.33, 7) if numbered else (0.09, 5)
    side = min(max(4.0, 1.2 + pitch * len(rows)), 16.0)
    # A name at each row that has room for it.
    named = range(0, len(rows), math.ceil(pitch * len(rows) / side))
    with drawing(path, width=side + 1.2, height=side + 0.6) as figure:
        axes = figure.add_subplot()
        picture = axes.imshow(percent, cmap='Blues', vmin=0, vmax=100,
                              interpolation='nearest')
        axes.set_xticks(named, [columns[k] for k in named], rotation=90, fontsize=size)
        axes.set_yticks(named, [rows[k] for k in named], fontsize=size)
        if numbered:
            for (row, column), value in np.ndenumerate(percent):
                if counts[row, column]:
                    axes.text(column, row, f'{value:.0f}', ha='center', va='center',
                              fontsize=7, color='white' if value > 60 else 'black')
        axes.set(xlabel='predicted', ylabel='true', title='confusion in percent of each row\n'
                 + evaluation.confusion_title)
        figure.colorbar(picture, ax=axes, shrink=0.6)


def _line_colour(number: int, name: str = '') -> str:
    from ..benchmark.figures import PALETTE

    colours: Sequence[str] = list(PALETTE.values())
    return 'black' if name == 'loss' else colours[number % len(colours)]


def _plain(name: str) -> str:
    """Return a name that matplotlib does not take for a formula."""
    return name.replace('$', r'\$')
