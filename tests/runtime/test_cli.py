"""The command evit-run, with a model that needs no file."""

import subprocess
import sys

import cv2
import pytest

import evit_runtime
from evit_runtime import __version__
from evit_runtime.cli import main


@pytest.fixture
def loaded(monkeypatch, tmp_path, spots, two_spots):
    """Replace the loading of a model; return what it was called with."""
    calls = []

    def load_model(path, **options):
        calls.append((path, options))
        return spots

    monkeypatch.setitem(vars(evit_runtime), 'load_model', load_model)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('a.png', two_spots)
    return calls


def test_predict(loaded, spots, tmp_path, capsys):
    assert main(['predict', 'model.onnx', 'a.png', '--out', 'out', '--score-thr', '0.7', '--device',
                 'cuda', '--batch-size', '2', '--no-pictures', '--max-megapixels', '2.5']) == 0
    assert loaded == [('model.onnx', {'device': 'cuda'})] and spots.max_pixels == 2_500_000
    assert capsys.readouterr().out == '1 picture: red 1; see out\n'
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'predictions.csv', 'predictions.json']


def test_classes_by_name_or_number(loaded, spots, capsys):
    assert main(['predict', 'm.onnx', 'a.png', '--classes', '1']) == 0
    assert 'picture: blue 1;' in capsys.readouterr().out
    spots.class_names = ('1', 'blue')
    assert main(['predict', 'm.onnx', 'a.png', '--classes', '1']) == 0
    assert 'picture: 1 1;' in capsys.readouterr().out
    assert main(['predict', 'm.onnx', 'a.png', '--classes', 'bleu']) == 2
    assert capsys.readouterr().err == "error: the model has no class 'bleu'; did you mean blue?\n"


def test_an_input_that_can_not_be_read_shows_in_the_status(loaded, tmp_path, capsys):
    (tmp_path / 'b.png').write_text('text')
    assert main(['predict', 'm.onnx', 'a.png', 'b.png']) == 2
    printed = capsys.readouterr()
    assert printed.out == '1 picture: red 1, blue 1; see predictions\n'
    assert [line.partition('/')[0] for line in printed.err.splitlines()] == [
        "error: can't read the image ", 'error: 1 input could not be read, as said above']


@pytest.mark.parametrize('arguments, message', [
    (['gone.png'], 'error: no such file or folder: gone.png\n'),
    (['a.png', '--max-megapixels', '0'], 'error: --max-megapixels is more than 0, but got 0\n')])
def test_mistakes(arguments, message, loaded, capsys):
    assert main(['predict', 'm.onnx', *arguments]) == 2
    assert capsys.readouterr().err == message
    assert len(loaded) == ('a.png' in arguments)  # nobody waits for a model in vain


def test_version_and_help_as_a_module():
    code = ('import sys, runpy\nsys.argv = ["evit-run", sys.argv[1]]\ntry:\n'
            '    runpy.run_module("evit_runtime", run_name="__main__")\n'
            'finally:\n    print(sorted({"cv2", "numpy", "torch"} & set(sys.modules)))')
    for flag, start in (('--version', f'evit-run {__version__}\n'), ('--help', 'usage: evit-run ')):
        done = subprocess.run([sys.executable, '-c', code, flag], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(start)
        assert done.stdout.endswith('[]\n')
