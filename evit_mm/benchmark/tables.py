"""Markdown tables that are aligned on a terminal too."""

from collections.abc import Sequence

__all__ = ['format_table']


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]], *,
                 align: str | None = None) -> str:
    """Format an aligned Markdown table.

    Args:
        header: Names of the columns.
        rows: The cells of each row; None is an empty cell. Format numbers before.
        align: One letter per column, ``l`` or ``r``; by default the first is left-aligned and all
            others right-aligned.

    Raises:
        ValueError: If a row or ``align`` has another number of columns.
    """
    align = 'l' + 'r' * (len(header) - 1) if align is None else align
    if set(align) - set('lr'):
        raise ValueError(f'align={align!r} must consist of the letters l and r')
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    if any(len(row) != len(align) for row in cells):
        raise ValueError(f'a table of {len(align)} columns has rows of '
                         f'{sorted({len(row) for row in cells})} cells')
    # Markdown's rule needs three dashes.
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [' | '.join(text.rjust(width) if side == 'r' else text.ljust(width)
                        for text, width, side in zip(row, widths, align, strict=True))
             for row in cells]
    rule = ' | '.join('-' * (width - 1) + ':' if side == 'r' else '-' * width
                      for width, side in zip(widths, align, strict=True))
    return '\n'.join(f'| {line} |' for line in (lines[0], rule, *lines[1:]))


def _cell(value: object) -> str:
    # A bar would end the cell, and a line break the row.
    return '' if value is None else ' '.join(str(value).replace('|', '\\|').split())
