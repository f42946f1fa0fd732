"""What the benchmark found, as tables and as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import UserError
from .forms import Form
from .measure import Rate, Row
from .model_factory import TIMM
from .tables import format_table
from .timing import quartiles

__all__ = ['format_parts', 'format_rates', 'format_rows', 'ratio', 'reference_of', 'write_json']

_TIMM_PREFIX = f'{TIMM}efficientvit_'


def reference_of(row: Row, rows: Sequence[Row], wanted: str | None = None) -> Row | None:
    """The row that another one is compared with.

    Args:
        row: The row.
        rows: All rows of its image size.
        wanted: The name of a row, or of a model, whose first row is meant.

    Returns:
        Row: The wanted one; unless given, timm's port of the same variant (of any, for a model
        that is no variant) in eager float32, else the first row, of those that did not fail. None
        where there is none, or the wanted one failed.

    Raises:
        UserError: If there is no row of the wanted name.
    """
    if wanted is not None:
        named = [other for other in rows if wanted in (str(other), other.model)]
        if not named:
            raise UserError(f'--reference {wanted}: there is no such row; the rows are '
                            f'{", ".join(map(str, rows))}')
        found = named[0]
    else:
        done = [other for other in rows if other.failure is None]
        timms = [other for other in done if other.form == Form()
                 and other.model.startswith(_TIMM_PREFIX)]
        same = [other for other in timms if other.arch == row.arch]
        found = (same or timms or done or list(rows))[0]
    return found if found.failure is None else None


def ratio(row: Row, rows: Sequence[Row], wanted: str | None = None) -> float | None:
    """A row's median time over its reference's; None where one of them has none."""
    reference = reference_of(row, rows, wanted)
    if reference is None or row.failure is not None:
        return None
    return row.turns.milliseconds / reference.turns.milliseconds


def format_rows(rows: Sequence[Row], wanted: str | None = None) -> str:
    """A table of the rows of one image size, and below it what failed."""
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
        first, third = quartiles(row.turns.totals)
        compared = ratio(row, rows, wanted)
        line += [_short(row.turns.milliseconds), f'{_short(first)} to {_short(third)}',
                 f'{compared:.2f}' if compared is not None else None,
                 f'{row.turns.milliseconds / row.floor:.2f}' if row.floor else None,
                 _megabytes(row.peak), *[_megabytes(row.saved)] * training,
                 None if row.difference is None else f'{row.difference:.0e}']
        lines.append(line)
    table = format_table(header, lines, align='lll' + 'l' * layouts
                         + 'r' * (len(header) - 3 - layouts))
    return '\n'.join([table, *('failed: ' + failure for failure in failures)])


def format_parts(rows: Sequence[Row]) -> str:
    """A table of the parts of the networks that have several; empty where none has.

    A part's share of arithmetic is relative to the backbone's.
    """
    lines: list[list[object]] = []
    for row in rows:
        if row.failure is not None or len(row.turns.steps) < 2 or 'backbone' not in row.macs:
            continue
        parts: dict[str, tuple[int, int, float]] = {
            part: (row.params[part], row.macs[part], median(times))
            for part, times in row.turns.steps.items()}
        parts['all'] = (sum(row.params.values()), sum(row.macs.values()), row.turns.milliseconds)
        for part, (params, macs, milliseconds) in parts.items():
            lines.append([row.model, f'{row.form}', part, f'{params / 1e6:.2f}',
                          f'{macs / 1e9:.2f}', f'{macs / max(row.macs["backbone"], 1):.2f}',
                          _short(milliseconds)])
    if not lines:
        return ''
    header = ['model', 'form', 'part', 'params (M)', 'multiply-adds (G)', 'x backbone', 'ms']
    return format_table(header, lines, align='lllrrrr')


def format_rates(rates: Sequence[Rate]) -> str:
    """One line per number format: the best rate, and which convolution reached it."""
    best: dict[str, Rate] = {}
    for rate in rates:
        if rate.dtype not in best or rate.per_second > best[rate.dtype].per_second:
            best[rate.dtype] = rate
    return '\n'.join(f'convolution rate in {dtype}: {rate.per_second / 1e9:.1f} G multiply-adds '
                     f'a second ({rate.convolution})' for dtype, rate in best.items())


def write_json(path: Path, settings: Mapping[str, Any], tables: Sequence[
        tuple[Sequence[Row], Sequence[Rate]]], wanted: str | None = None) -> None:
    """Write everything that was measured, all single times included.

    Args:
        path: The file.
        settings: What was asked for, and of which machine.
        tables: Rows and rates, one pair per image size.
        wanted: As in `reference_of`.

    Raises:
        UserError: If it can't be written.
    """
    content = {'settings': dict(settings),
               'rows': [_row(row, rows, wanted) for rows, _ in tables for row in rows],
               'rates': [{'shape': list(rate.shape), 'dtype': rate.dtype,
                          'convolution': str(rate.convolution), 'macs': rate.convolution.macs,
                          'macs_per_second': rate.per_second}
                         for _, rates in tables for rate in rates]}
    unfinished = path.with_name(f'{path.name}.tmp')
    try:
        unfinished.write_text(json.dumps(content, indent=1, default=str) + '\n', encoding='utf-8')
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror}') from error


def _row(row: Row, rows: Sequence[Row], wanted: str | None) -> dict[str, Any]:
    reference = reference_of(row, rows, wanted)
    done = row.failure is None
    form = row.form
    return {'name': str(row), 'model': row.model, 'form': form.name, 'dtype': form.dtype,
            'layout': form.layout, 'graph': form.graph, 'shape': list(row.shape),
            'failure': row.failure,
            'ms': row.turns.milliseconds if done else None,
            'quartiles': quartiles(row.turns.totals) if done else None,
            'reference': str(reference) if reference else None,
            'ratio': ratio(row, rows, wanted),
            'floor_ms': row.floor,
            'params': row.params, 'macs': row.macs, 'peak_bytes': row.peak,
            'saved_bytes': row.saved,
            'difference': row.difference,
            'times': row.turns.steps}


def _short(milliseconds: float) -> str:
    return f'{milliseconds:.{1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3}f}'


def _megabytes(count: int | None) -> str | None:
    return None if count is None else f'{count / 1e6:.1f}'
