"""The figure of a benchmark: ratios as bars, or time and memory over image size."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .figures import HALF_PAGE, PALETTE, drawing
from .forms import FORMS, PEER_FORMS
from .measure import Row
from .report import ratio

__all__ = ['plot']

_COLOURS = dict(zip(
    dict.fromkeys(form for modes in (FORMS, PEER_FORMS) for forms in modes.values()
                  for form in forms),
    (PALETTE[name] for name in ('grey', 'blue', 'green', 'vermilion', 'purple', 'sky')),
    strict=True))
_MARKERS = 'os^Dv<>PX'


def plot(path: Path, tables: Sequence[Sequence[Row]], reference: str | None = None) -> None:
    """Draw the results.

    For one image size, bars of each row's time relative to its reference; for several, time and
    peak memory over the number of pixels.

    Args:
        path: The file; its suffix names the format.
        tables: The rows of each image size.
        reference: See `reference_of`.

    Raises:
        UserError: If the file can't be written.
    """
    if len(tables) > 1:
        _draw_lines(path, tables)
    else:
        _draw_bars(path, tables[0], reference)


def _draw_bars(path: Path, rows: Sequence[Row], reference: str | None) -> None:
    bars = [(row, value) for row in rows if (value := ratio(row, rows, reference)) is not None]
    with drawing(path, height=0.7 + 0.19 * max(len(bars), 1)) as figure:
        axes = figure.add_subplot()
        for position, (row, value) in enumerate(bars):
            axes.barh(position, value, color=_COLOURS[row.form.name], height=0.7)
            axes.annotate(f'{value:.2f}', (value, position), (2, 0), textcoords='offset points',
                          va='center', fontsize=7, bbox=dict(fc='white', ec='none', pad=0.5))
        axes.set_yticks(range(len(bars)), [_label(row) for row, _ in bars])
        axes.invert_yaxis()
        axes.axvline(1, color='black', linewidth=0.6, zorder=0)
        axes.margins(x=0.12)
        axes.set_xlabel('time / reference')


def _draw_lines(path: Path, tables: Sequence[Sequence[Row]]) -> None:
    names = list(dict.fromkeys(str(row) for rows in tables for row in rows))
    panels: list[tuple[str, Callable[[Row], Any]]] = [
        ('ms', lambda row: row.timings.milliseconds),
        ('peak memory (MB)', lambda row: None if row.peak is None else row.peak / 1e6)]
    with drawing(path, width=HALF_PAGE, height=4.2 + 0.14 * len(names)) as figure:
        for number, (title, value) in enumerate(panels):
            axes = figure.add_subplot(2, 1, number + 1)
            for line, name in enumerate(names):
                rows = [row for table in tables for row in table
                        if str(row) == name and row.failure is None and value(row) is not None]
                rows.sort(key=lambda row: row.shape[0] * row.shape[1])
                axes.plot([row.shape[0] * row.shape[1] / 1e6 for row in rows],
                          [value(row) for row in rows], marker=_MARKERS[line % len(_MARKERS)],
                          color=list(PALETTE.values())[line % len(PALETTE)],
                          label=_label(rows[0]) if rows else name)
            axes.set_ylabel(title)
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
        axes.set_xlabel('megapixels')
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside upper left', ncols=1)


def _label(row: Row) -> str:
    name = row.model.replace('timm://', 'timm ').replace('torchvision://', '')
    return f'{name} {row.form}'
