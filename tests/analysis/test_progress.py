"""Long work shows on a terminal how far it is, and leaves nothing of that anywhere else."""

import io
import re
import sys
from functools import partialmethod

import pytest
from PIL import Image
from tqdm import tqdm

from evit_mm.cli import run_tool
from evit_mm.cli.analyze import analyze, analyze_parser

# What each analysis is given, and its bars: what they say, how much there is, and of what.
ANALYSES = {
    'runtime': ('m0 --shape 64 64 --repeats 2', [('', 1, 'model'), ('m0', 2, 'step')]),
    'heads': ('m0 --shape 32 32 --batch 1 --images IMAGES', [('m0', 2, 'image')]),
    'channels': ('timm://deit_tiny_patch16_224 --labels predicted --batches 2 --batch-size 1 '
                 '--steps 1 --images IMAGES',
                 [('predicting labels', 2, 'batch'), ('ranking', 2, 'batch'),
                  ('loss', 2, 'batch')]),
    'proportion': ('--family m0 --shares 0.27 --shape 64 64 --batch 1 --repeats 1 '
                   '--tolerance 0.99',
                   [('checking', 1, 'member'), ('', 1, 'member'),
                    ('share 0.27, widths \\(64, 128, 192\\)', 8, 'it')]),
}


class Stream(io.StringIO):
    """What stderr may be."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize('terminal', [True, False])
@pytest.mark.parametrize('name', ANALYSES)
def test_bars_on_terminals_alone(name, terminal, tmp_path, monkeypatch):
    if name == 'channels':
        pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    (tmp_path / 'images').mkdir()
    for index in range(2):
        Image.effect_noise((64, 64), 60).save(tmp_path / 'images' / f'{index}.png')
    arguments, bars = ANALYSES[name]
    # Every step is shown, however short it is.
    monkeypatch.setattr(tqdm, '__init__', partialmethod(tqdm.__init__, mininterval=0))
    monkeypatch.setattr(sys, 'stderr', Stream(terminal))
    assert run_tool(analyze_parser(), analyze, [
        name, *arguments.replace('IMAGES', str(tmp_path / 'images')).split(),
        '--out', str(tmp_path / 'out')]) == 0
    shown = sys.stderr.getvalue()
    if not terminal:
        assert not shown
        return
    for says, total, unit in bars:
        for percent, done in ((0, 0), (100, total)):
            assert re.search(rf'\r{says}{": " * bool(says)} *{percent}%\|[^|]*\| {done}/{total} '
                             rf'\[[^\r]*{unit}', shown), (says, shown)
    assert shown.endswith('\r')  # the last one is wiped away
