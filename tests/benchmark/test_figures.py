"""Figures have their own style, and leave matplotlib's settings as they are."""

import matplotlib
import pytest

from evit_mm.benchmark.figures import HALF_PAGE, PALETTE, drawing
from evit_mm.errors import UserError


def test_drawing_leaves_no_state(tmp_path):
    path, before = tmp_path / 'new' / 'figure.png', dict(matplotlib.rcParams)
    with drawing(path, height=2) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], color=PALETTE['blue'])
        label = axes.set_xlabel('share')
        assert label.get_fontsize() == 8
    assert path.read_bytes().startswith(b'\x89PNG')
    assert tuple(figure.get_size_inches()) == (HALF_PAGE, 2)
    assert dict(matplotlib.rcParams) == before


def test_an_error_while_drawing_writes_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), drawing(tmp_path / 'figure.png'):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['file/figure.png', 'figure.unheard'])
def test_failed_writes_are_reported(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match="can't write"), drawing(tmp_path / name):
        pass
