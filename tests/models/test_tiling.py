"""Every tile is in one segment, and chunks are filled."""

import pytest
import torch

from evit_mm.models.tiling import cut_tiles

SIZES = (64, 96, 288)


@pytest.mark.parametrize('sizes', [SIZES, (288,), (5,)], ids=str)
@pytest.mark.parametrize('batch,height,width', [
    (1, 100, 168), (1, 50, 83), (2, 25, 42), (1, 9, 800), (100, 14, 14), (3, 30, 62), (5, 3, 500),
    (300, 3, 3), (1, 1, 1)])
def test_segments_cover_every_tile_once(batch, height, width, sizes):
    seen = torch.zeros(batch, -(-height // 4), -(-width // 4), dtype=torch.int)
    for chunk in cut_tiles(batch, height, width, sizes):
        assert chunk.size in sizes
        assert 0 < sum(segment.tiles for segment in chunk.segments) <= chunk.size
        for segment in chunk.segments:
            assert segment.tiles == segment.last - segment.first > 0
            seen[segment.image, segment.row, segment.first:segment.last] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize('height,width,sizes', [
    (100, 168, [288, 288, 288, 96, 96]), (100, 136, [288, 288, 288]), (50, 68, [64, 64, 96]),
    (25, 34, [64]), (25, 42, [96]), (4, 4, [64]), (4, 4 * 97, [64, 64]),
    (4, 4 * 289, [64, 64, 96, 96])], ids=str)
def test_few_rows_are_left_empty(height, width, sizes):
    found = [chunk.size for chunk in cut_tiles(1, height, width, SIZES)]
    assert sorted(found) == sorted(sizes)


def test_no_images_have_no_chunks():
    assert not cut_tiles(0, 14, 14, SIZES) and not cut_tiles(1, 0, 14, SIZES)
