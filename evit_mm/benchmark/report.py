"""Tables and JSON of the results of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .. import files
from ..errors import UserError
from .forms import Form
from .measure import Rate, Row
from .model_factory import TIMM
from .tables import format_table
from .timing import quartiles

__all__ = ['describe_row', 'format_milliseconds', 'format_parts', 'format_rates', 'format_rows',
           'ratio', 'reference_of', 'write_json']

_TIMM_PREFIX = f'{TIMM}efficientvit_'


def reference_of(row: Row, rows: Sequence[Row], reference: str | None = None) -> Row | None:
    """Return the row that another row is compared with.

    Args:
        row: The row.
        rows: All rows of its image size.
        reference: Name of a row, or of a model, which stands for its first row. By default, timm's
            port of the same backbone in eager float32, else of any backbone, else the first row, of
            those that did not fail.

    Returns:
        Row: The reference; None if it failed.

    Raises:
        UserError: If there is no row of this name.
    """
    if reference is not None:
        named = [other for other in rows if reference in (str(other), other.model)]
        if not named:
            raise UserError(f'--reference {reference}: no such row; the rows are '
                            f'{", ".join(map(str, rows))}')
        chosen = named[0]
    else:
        done = [other for other in rows if other.failure is None]
        timms = [other for other in done if other.form == Form()
                 and other.model.startswith(_TIMM_PREFIX)]
        same = [other for other in timms if other.arch == row.arch]
        chosen = (same or timms or done or list(rows))[0]
    return chosen if chosen.failure is None else None


def ratio(row: Row, rows: Sequence[Row], reference: str | None = None) -> float | None:
    """Return a row's median time relative to its reference's; None if either failed."""
    compared = reference_of(row, rows, reference)
    if compared is None or row.failure is not None:
        return None
    return row.timings.milliseconds / compared.timings.milliseconds


def format_rows(rows: Sequence[Row], reference: str | None = None) -> str:
    """Format a table of the rows of one image size, followed by the reasons of failed rows."""
    layouts = len({row.form.layout for row in rows}) > 1
    training = any(row.saved is not None for row in rows)
    header = ['model', 'form', 'dtype', *['layout'] * layouts, 'params (M)', 'multiply-adds (G)',
              'ms', 'quartiles', 'ratio', 'x floor', 'peak (MB)', *['saved (MB)'] * training,
              'difference']
    lines: list[list[object]] = []
    failures = []
    for row in rows:
        form = f'{row.form.name}, graph' if row.form.graph else row.form.name
        params = f'{sum(row.params.values()) / 1e6:.2f}' if row.params else None
        macs = f'{sum(row.macs.values()) / 1e9:.2f}' if row.macs else None
        line: list[object] = [row.model, form, row.form.dtype,
                              *[row.form.layout] * layouts, params, macs]
        if row.failure is not None:
            failures.append(f'{row}: {row.failure}')
            lines.append([*line, 'failed', *[None] * (len(header) - len(line) - 1)])
            continue
        first, third = quartiles(row.timings.totals)
        compared = ratio(row, rows, reference)
        line += [format_milliseconds(row.timings.milliseconds),
                 f'{format_milliseconds(first)} to {format_milliseconds(third)}',
                 f'{compared:.2f}' if compared is not None else None,
                 f'{row.timings.milliseconds / row.floor:.2f}' if row.floor else None,
                 _megabytes(row.peak), *[_megabytes(row.saved)] * training,
                 None if row.difference is None else f'{row.difference:.0e}']
        lines.append(line)
    table = format_table(header, lines, align='lll' + 'l' * layouts
                         + 'r' * (len(header) - 3 - layouts))
    return '\n'.join([table, *('failed: ' + failure for failure in failures)])


def format_parts(rows: Sequence[Row]) -> str:
    """Format a table of the parts of networks that have several; empty if none has.

    The column ``x backbone`` has multiply-adds relative to the backbone's.
    """
    lines: list[list[object]] = []
    for row in rows:
        if row.failure is not None or len(row.timings.steps) < 2 or 'backbone' not in row.macs:
            continue
        parts: dict[str, tuple[int, int, float]] = {
            part: (row.params[part], row.macs[part], median(times))
            for part, times in row.timings.steps.items()}
        parts['all'] = (sum(row.params.values()), sum(row.macs.values()), row.timings.milliseconds)
        for part, (params, macs, milliseconds) in parts.items():
            lines.append([row.model, f'{row.form}', part, f'{params / 1e6:.2f}',
                          f'{macs / 1e9:.2f}', f'{macs / max(row.macs["backbone"], 1):.2f}',
                          format_milliseconds(milliseconds)])
    if not lines:
        return ''
    header = ['model', 'form', 'part', 'params (M)', 'multiply-adds (G)', 'x backbone', 'ms']
    return format_table(header, lines, align='lllrrrr')


def format_rates(rates: Sequence[Rate]) -> str:
    """Format one line per dtype: the best rate, and the convolution that reached it."""
    best: dict[str, Rate] = {}
    for rate in rates:
        if rate.dtype not in best or rate.per_second > best[rate.dtype].per_second:
            best[rate.dtype] = rate
    return '\n'.join(f'convolution rate in {dtype}: {rate.per_second / 1e9:.1f} G multiply-adds '
                     f'a second ({rate.convolution})' for dtype, rate in best.items())


def write_json(path: Path, settings: Mapping[str, Any], tables: Sequence[
        tuple[Sequence[Row], Sequence[Rate]]], reference: str | None = None) -> None:
    """Write all results, including every single time, as JSON.

    Args:
        path: The file.
        settings: Arguments, machine and versions.
        tables: Rows and rates, one pair per image size.
        reference: See `reference_of`.

    Raises:
        UserError: If the file can't be written.
    """
    content = {'settings': dict(settings),
               'rows': [_with_ratio(row, rows, reference) for rows, _ in tables for row in rows],
               'rates': [{'shape': list(rate.shape), 'dtype': rate.dtype,
                          'convolution': str(rate.convolution), 'macs': rate.convolution.macs,
                          'macs_per_second': rate.per_second}
                         for _, rates in tables for rate in rates]}
    files.write_json(path, content, indent=1)


def describe_row(row: Row) -> dict[str, Any]:
    """Return all figures of a row, as JSON can hold them."""
    done = row.failure is None
    form = row.form
    return {'name': str(row), 'model': row.model, 'form': form.name, 'dtype': form.dtype,
            'layout': form.layout, 'graph': form.graph, 'shape': list(row.shape),
            'failure': row.failure,
            'ms': row.timings.milliseconds if done else None,
            'quartiles': quartiles(row.timings.totals) if done else None,
            'floor_ms': row.floor, 'preparation_s': row.preparation,
            'params': row.params, 'macs': row.macs, 'peak_bytes': row.peak,
            'saved_bytes': row.saved,
            'difference': row.difference,
            'times': row.timings.steps}


def format_milliseconds(milliseconds: float) -> str:
    """Format a time with three significant digits or, from 100 ms on, with one decimal."""
    return f'{milliseconds:.{1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3}f}'


def _with_ratio(row: Row, rows: Sequence[Row], reference: str | None) -> dict[str, Any]:
    compared = reference_of(row, rows, reference)
    return {**describe_row(row), 'reference': str(compared) if compared else None,
            'ratio': ratio(row, rows, reference)}


def _megabytes(count: int | None) -> str | None:
    return None if count is None else f'{count / 1e6:.1f}'
