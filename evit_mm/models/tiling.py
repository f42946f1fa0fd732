"""How Winograd's method divides maps: into tiles, and these into chunks."""

import functools
from typing import NamedTuple

__all__ = ['IN', 'OUT', 'Chunk', 'Segment', 'count_tiles', 'cut_tiles']

OUT = 4
"""Side of a tile of outputs."""
IN = 6
"""Side of the tile of inputs that it depends on."""


class Segment(NamedTuple):
    """Neighbouring tiles of a row.

    Attributes:
        image: Of which image.
        row: Which row of tiles of it.
        first: The first of the tiles.
        last: The one after them.
    """

    image: int
    row: int
    first: int
    last: int

    @property
    def tiles(self) -> int:
        """How many tiles it has."""
        return self.last - self.first


class Chunk(NamedTuple):
    """Tiles that are multiplied at once.

    Attributes:
        size: Rows of the matrices, of which the last may belong to no tile.
        segments: Where the tiles are, row by row, image by image.
    """

    size: int
    segments: tuple[Segment, ...]


def count_tiles(height: int, width: int) -> tuple[int, int]:
    """How many tiles, down and across, cover a map of this height and width."""
    return -(-height // OUT), -(-width // OUT)


@functools.lru_cache
def cut_tiles(batch: int, height: int, width: int, sizes: tuple[int, ...]) -> tuple[Chunk, ...]:
    """Divide the tiles of maps into chunks.

    Args:
        batch: Number of images.
        height: Rows of pixels of each.
        width: Columns of pixels of each.
        sizes: How many rows a chunk may have, ascending.
    """
    tall, wide = count_tiles(height, width)
    start, total = 0, batch * tall * wide
    chunks = []
    for size in _choose_sizes(total, sizes):
        stop = min(start + size, total)
        segments = []
        while start < stop:
            row, first = divmod(start, wide)
            last = min(wide, first + stop - start)
            segments.append(Segment(*divmod(row, tall), first, last))
            start += last - first
        chunks.append(Chunk(size, tuple(segments)))
    return tuple(chunks)


def _choose_sizes(tiles: int, sizes: tuple[int, ...]) -> list[int]:
    """The largest size for all but the end, where smaller ones may leave fewer rows empty."""
    full = max(tiles // sizes[-1] - 1, 0)
    return [sizes[-1]] * full + list(_cover(tiles - full * sizes[-1], sizes))


@functools.cache
def _cover(tiles: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes that hold so many tiles with the fewest rows, and of those the fewest."""
    if tiles <= 0:
        return ()
    found = ((size, *_cover(tiles - size, sizes)) for size in reversed(sizes))
    return min(found, key=lambda chosen: (sum(chosen), len(chosen)))
