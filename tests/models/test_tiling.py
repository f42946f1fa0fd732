"""Every tile is in one piece, and pieces share chunks."""

import pytest
import torch

from evit_mm.models.tiling import count_chunks, group_tiles


@pytest.mark.parametrize('batch,height,width', [
    (1, 100, 168), (1, 50, 83), (2, 25, 42), (1, 9, 800), (100, 14, 14), (3, 30, 62), (5, 3, 500),
    (300, 3, 3), (1, 1, 1)])
def test_pieces_cover_every_tile_once(batch, height, width):
    tall, wide = -(-height // 4), -(-width // 4)
    seen = torch.zeros(batch, tall, dtype=torch.int)
    pixels = 0
    for group in group_tiles(batch, height, width, 128):
        assert sum(piece.tiles for piece in group) <= 128 or len(group) == 1
        for piece in group:
            assert piece.tiles <= max(48, wide)
            assert piece.shape == (len(piece.images), len(piece.rows), wide)
            seen[piece.images.start:piece.images.stop, piece.rows.start:piece.rows.stop] += 1
            pixels += piece.pixels(height, width)
    assert (seen == 1).all() and pixels == batch * height * width


def test_chunks_are_filled():
    groups = group_tiles(1, 100, 168, 128)
    assert [sum(piece.tiles for piece in group) for group in groups] == [126] * 8 + [42]
    assert [piece.shape for piece in group_tiles(100, 14, 14, 128)[0]] == [(2, 4, 4)] * 4
    assert [piece.shape for piece in group_tiles(1, 60, 60, 128)[0]] == [(1, 2, 15)] * 4
    assert [count_chunks(group, 128) for group in group_tiles(1, 8, 800, 128)] == [2, 2]


def test_no_images_have_no_pieces():
    assert not group_tiles(0, 14, 14, 128)
