"""The style of all figures: legible at half the width of a page and to the colour-blind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:  # importing matplotlib takes a second
    from matplotlib.figure import Figure

__all__ = ['HALF_PAGE', 'PALETTE', 'drawing', 'legend_columns', 'save']

HALF_PAGE = 3.3
"""Half the width of a page, in inches."""

PALETTE = {
    'blue': '#0072B2', 'orange': '#E69F00', 'green': '#009E73', 'vermilion': '#D55E00',
    'purple': '#CC79A7', 'sky': '#56B4E9', 'yellow': '#F0E442', 'grey': '#999999',
}
"""The colours of Okabe and Ito, which people with any colour vision can tell apart."""

_STYLE: dict[Any, Any] = {  # the keys have a type of their own in matplotlib: a list of all names
    'font.size': 8, 'axes.titlesize': 8, 'axes.labelsize': 8, 'xtick.labelsize': 7,
    'ytick.labelsize': 7, 'legend.fontsize': 7, 'legend.frameon': False,
    'legend.handlelength': 1.2, 'legend.columnspacing': 1.0,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': 0.6,
    'axes.axisbelow': True, 'axes.grid': False, 'grid.linewidth': 0.4, 'grid.color': '#DDDDDD',
    'lines.linewidth': 1.4, 'lines.markersize': 4, 'savefig.dpi': 250,
}

_LEGEND_WIDTH, _HANDLE_WIDTH = 60, 8
"""Width of half a page, and of a line's handle with its margins, in letters of a legend."""


@contextmanager
def drawing(path: Path, *, width: float = HALF_PAGE, height: float = 2.2) -> 'Iterator[Figure]':
    """Yield a figure, and save it if the block ends without an error.

    Args:
        path: The file; its suffix names the format (``.png``, ``.pdf``, ``.svg``).
        width: Width in inches.
        height: Height in inches.

    Raises:
        UserError: If the file can't be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot, whose state is shared with the program that imports this. Labels take their size
    # when they are drawn, so the style must cover saving too.
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure
        save(figure, path)


def legend_columns(labels: Sequence[str], *, most: int = 3) -> int:
    """Return the number of columns of a legend that fit on half a page."""
    return max(1, min(most, len(labels), _LEGEND_WIDTH // (max(map(len, labels)) + _HANDLE_WIDTH)))


def save(figure: 'Figure', path: Path) -> None:
    """Write a figure; its folder is created.

    Raises:
        UserError: If the file can't be written, or its suffix is not a format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror or error}') from error
    except ValueError as error:
        raise UserError(f'can\'t write {path}: {error}') from error
