"""An evaluation, class by class."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..files import write_atomically, write_json

__all__ = ['Evaluation']


@dataclass
class Evaluation:
    """Values of each class that an evaluator counted.

    Attributes:
        classes: Names of the K classes.
        columns: Values of the classes, (K,) each, by the name of the column; NaN where a class has
            none.
        precision: Precision (R, K) at R recalls from 0 to 1 and IoU 0.5, by the name of the metric;
            -1 for classes without an object.
        confusion: Counts of true classes (rows) and predicted classes (columns); one more of each
            than there are classes if the last stands for background.
        confusion_title: What was counted.
    """

    classes: Sequence[str]
    columns: Mapping[str, Sequence[float]]
    precision: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    confusion: npt.NDArray[Any] | None = None
    confusion_title: str = ''

    def write(self, stem: Path, metrics: Mapping[str, Any]) -> None:
        """Write ``<stem>.csv`` with a row for each class, and ``<stem>.json`` with the metrics too.

        Args:
            stem: Path of the files without their suffix; its folder is created.
            metrics: The metrics of all classes together.

        Raises:
            UserError: If they can't be written.
        """
        rows = [{'class': name, **{column: _number(values[k])
                                   for column, values in self.columns.items()}}
                for k, name in enumerate(self.classes)]
        stem.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline='')
        table = csv.DictWriter(text, ['class', *self.columns], lineterminator='\n')
        table.writeheader()
        table.writerows(rows)
        with write_atomically(stem.with_name(f'{stem.name}.csv')) as file:
            file.write(text.getvalue())
        write_json(stem.with_name(f'{stem.name}.json'), {
            'metrics': {name: _number(value) for name, value in metrics.items()
                        if _is_number(value)}, 'classes': rows}, indent=1)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _number(value: Any) -> int | float | None:
    """Return a number as JSON has it; None for NaN."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) or str(getattr(value, 'dtype', '')).startswith(
        ('int', 'uint')) else number
