"""How Winograd's method divides maps: into tiles, pieces of them, and groups of pieces."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ['IN', 'OUT', 'Group', 'Piece', 'count_chunks', 'group_tiles']

OUT = 4
"""Side of a tile of outputs."""
IN = 6
"""Side of the tile of inputs that it depends on."""
_PIECE = 48
"""Tiles of a piece, unless one row has more: few enough for a core's own cache."""


@dataclass(frozen=True)
class Piece:
    """Whole rows of tiles of some images, which are copied and transformed together.

    Attributes:
        images: Which images.
        rows: Which rows of tiles of each.
        wide: Tiles in a row.
    """

    images: range
    rows: range
    wide: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns of tiles."""
        return len(self.images), len(self.rows), self.wide

    @property
    def tiles(self) -> int:
        """How many tiles it has."""
        images, rows, wide = self.shape
        return images * rows * wide

    def pixels(self, height: int, width: int) -> int:
        """How many pixels of maps of this height and width it covers."""
        rows = min(OUT * self.rows.stop, height) - OUT * self.rows.start
        return len(self.images) * rows * width


Group = tuple[Piece, ...]
"""Pieces whose products are computed together."""


@functools.lru_cache
def group_tiles(batch: int, height: int, width: int, chunk: int) -> tuple[Group, ...]:
    """Divide maps into groups of as many pieces as a chunk holds; of one, where it holds none.

    Args:
        batch: Number of images.
        height: Rows of pixels.
        width: Columns of pixels.
        chunk: Tiles of a chunk.
    """
    tall, wide = -(-height // OUT), -(-width // OUT)
    if 2 * tall * wide <= _PIECE:
        pieces = [Piece(images, range(tall), wide) for images in _cut(batch, tall * wide, chunk)]
    else:
        pieces = [Piece(range(image, image + 1), rows, wide) for image in range(batch)
                  for rows in _cut(tall, wide, chunk)]
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and count_chunks([*groups[-1], piece], chunk) == 1:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return tuple(map(tuple, groups))


def count_chunks(group: Sequence[Piece], chunk: int) -> int:
    """How many chunks hold all tiles of a group."""
    return -(-sum(piece.tiles for piece in group) // chunk)


def _cut(count: int, tiles: int, chunk: int) -> list[range]:
    """Cut a range of what has so many tiles each, so that parts fill a chunk best."""
    sizes = range(1, max(1, _PIECE // max(tiles, 1)) + 1)
    size = max(sizes, key=lambda size: (chunk // max(size * tiles, 1) * size * tiles, size))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
