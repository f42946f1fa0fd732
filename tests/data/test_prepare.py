"""tools/prepare_data.py, from its command line to its exit status."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'prepare_data.py'


def run_tool(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), 'shapes', *map(str, args)], cwd=cwd,
                          capture_output=True, text=True)


def run_tool_here(monkeypatch, *args: str) -> int:
    """Exit code of the tool run in this process: a new one spends seconds on importing torch."""
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'shapes', *args])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name='__main__')
    return caught.value.code


class TestTool:
    def test_both_layouts_from_another_folder(self, tmp_path, monkeypatch, capsys):
        options = ('--num-train', '3', '--num-val', '1', '--size', '64', '--seed', '2')
        done = run_tool('--out', 'x', *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for layout in ('coco', 'ade'):
            assert str(tmp_path / 'x' / layout) in done.stdout
            assert (tmp_path / 'x' / layout / 'shapes.json').is_file()
        for text in ('3 images', '1 images', 'triangle', 'sky', 'next: '):
            assert text in done.stdout
        for layout, model in (('coco', 'retinanet'), ('ade', 'upernet')):
            config = f'configs/{model}_evit_m0_shapes.py'
            root = tmp_path / 'x' / layout
            assert f'next: tools/train.py {config} --data-root {root}\n' in done.stdout
            assert (TOOL.parents[1] / config).is_file()
        assert '100%' in done.stderr  # the progress bar

        monkeypatch.chdir(tmp_path)
        assert run_tool_here(monkeypatch, '--out', 'x', *options, '--layout', 'ade') == 0
        printed = capsys.readouterr().out
        assert 'was there already' in printed and 'coco' not in printed

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / 'file').write_text('mine')
        (tmp_path / 'foreign' / 'coco').mkdir(parents=True)
        (tmp_path / 'foreign' / 'coco' / 'notes.txt').write_text('mine')
        return tmp_path

    @pytest.mark.parametrize('options', [('--size', '8'), ('--out', 'foreign')])
    def test_mistakes_are_told_in_one_line(self, folder, options):
        done = run_tool(*options, cwd=folder)
        assert done.returncode == 2
        assert done.stdout == ''
        assert done.stderr.startswith('error: ') and len(done.stderr.splitlines()) == 1
        assert 'Traceback' not in done.stderr

    @pytest.mark.parametrize('options', [
        ('--num-train', '0'), ('--num-val', '-3'), ('--size', '5000'), ('--seed', '-1'),
        ('--out', 'file'), ('--out', 'file/x'),
        pytest.param(('--out', '/proc/none'), marks=pytest.mark.skipif(
            not Path('/proc/self').exists(), reason='needs a folder nobody can write')),
    ], ids=' '.join)
    def test_more_mistakes(self, folder, options, monkeypatch, capsys):
        monkeypatch.chdir(folder)
        assert run_tool_here(monkeypatch, *options) == 2
        printed = capsys.readouterr()
        assert printed.out == ''
        assert printed.err.startswith('error: ') and len(printed.err.splitlines()) == 1
