"""The command `evit-mm data`, which tools/prepare_data.py runs."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from evit_mm.cli import data
from evit_mm.errors import UserError


def run(*argv):
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    data.run(parser.parse_args(['shapes', *argv]))


def test_both_layouts_from_another_folder(tmp_path, repository, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ('--num-train', '3', '--num-val', '1', '--size', '64', '--seed', '2')
    run('--out', 'x', *options)
    printed = capsys.readouterr()
    for layout, model in (('coco', 'retinanet'), ('ade', 'upernet')):
        root = tmp_path / 'x' / layout
        assert (root / 'shapes.json').is_file()
        config = f'configs/{model}_evit_m0_shapes.py'
        assert (repository / config).is_file()
        assert f'{layout}: {root} (generated)\n' in printed.out
        assert f'next: evit-mm train {model}_evit_m0_shapes --data-root {root}\n' in printed.out
    for text in ('train: 3 images, ', 'train: 3 images\n', 'val: 1 images', 'triangle', 'sky'):
        assert text in printed.out
    assert '100%' in printed.err  # the progress bar

    run('--out', 'x', *options, '--layout', 'ade')
    printed = capsys.readouterr().out
    assert '(up to date)' in printed and 'coco' not in printed


@pytest.mark.parametrize('options', [
    ('--size', '8'), ('--size', '5000'), ('--num-train', '0'), ('--num-val', '-3'),
    ('--seed', '-1'), ('--out', 'other'), ('--out', 'file'), ('--out', 'file/x'),
    pytest.param(('--out', '/proc/none'), marks=pytest.mark.skipif(
        not Path('/proc/self').exists(), reason='needs a folder that nobody can write to')),
], ids=' '.join)
def test_mistakes(options, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'other' / 'coco').mkdir(parents=True)
    (tmp_path / 'other' / 'coco' / 'notes.txt').write_text('mine')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        run(*options)
    assert '\n' not in str(caught.value)
    assert capsys.readouterr() == ('', '')


def test_exit_status_of_the_script(tmp_path, repository):
    done = subprocess.run(
        [sys.executable, str(repository / 'tools' / 'prepare_data.py'), 'shapes', '--size', '8'],
        cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: the sides of the images must be between 64 and 2048')
    assert len(done.stderr.splitlines()) == 1
