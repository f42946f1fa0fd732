"""Progress bars are shown on terminals, and nowhere else."""

import io
import re
import sys
from functools import partialmethod

import pytest
from PIL import Image
from tqdm import tqdm

# Arguments of each analysis, and its bars: description, total, unit.
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
    """Replacement of stderr."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize('terminal', [True, False])
@pytest.mark.parametrize('name', ANALYSES)
def test_bars_on_terminals_only(name, terminal, tmp_path, monkeypatch, command):
    if name == 'channels':
        pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    (tmp_path / 'images').mkdir()
    for index in range(2):
        Image.effect_noise((64, 64), 60).save(tmp_path / 'images' / f'{index}.png')
    arguments, bars = ANALYSES[name]
    # Every step is shown, however short.
    monkeypatch.setattr(tqdm, '__init__', partialmethod(tqdm.__init__, mininterval=0))
    monkeypatch.setattr(sys, 'stderr', Stream(terminal))
    command(name, *arguments.replace('IMAGES', str(tmp_path / 'images')).split(),
            '--out', tmp_path / 'out')
    shown = sys.stderr.getvalue()
    if not terminal:
        assert not shown
        return
    for description, total, unit in bars:
        for percent, done in ((0, 0), (100, total)):
            assert re.search(
                rf'\r{description}{": " * bool(description)} *{percent}%\|[^|]*\| {done}/{total} '
                rf'\[[^\r]*{unit}', shown), (description, shown)
    assert shown.endswith('\r')  # the last bar is cleared
