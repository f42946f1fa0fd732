"""The commands predict and app: which words are a checkpoint, and what is missing."""

import pytest

from evit_mm.cli import predict as command
from evit_mm.cli.main import main
from evit_mm.cli.predict import split_words


@pytest.mark.parametrize('words, checkpoint', [
    (['epoch_12.pth', 'a.jpg'], 'epoch_12.pth'), (['a/B.PTH', 'a.jpg'], 'a/B.PTH'),
    (['weights.safetensors', '0'], 'weights.safetensors'),
    (['evit://retinanet_m4', 'photos'], 'evit://retinanet_m4'),
    (['https://a.b/m4.pth?download=1', 'photos'], 'https://a.b/m4.pth?download=1'),
    (['https://a.b/cat.jpg', 'photos'], None), (['photos', 'epoch_12.pth'], None),
    (['a.jpg'], None), (['0'], None)])
def test_the_first_word_may_be_a_checkpoint(words, checkpoint):
    assert split_words(words) == (checkpoint, words[1:] if checkpoint else words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.jpg').touch()
    return tmp_path


@pytest.mark.parametrize('arguments, message', [
    (['predict', 'retinanet_evit_m0_shapes', 'a.jpg'],
     'name a checkpoint after retinanet_evit_m0_shapes, such as work_dirs/retinanet_evit_m0_shapes'
     '/epoch_12.pth: a config alone has no trained weights'),
    (['predict', 'retinanet_evit_m0_shapes', 'a.pth'],
     'INPUT is missing: a picture, a video, a folder, a pattern such as "photos/*.jpg", an address,'
     ' or the number of a webcam'),
    (['predict', 'retinanet_evit_m0_shapes', 'a.pth', 'gone'], 'no such file or folder: gone'),
    (['predict', 'nowhere', 'a.jpg'], 'no such config: nowhere'),
    (['predict', 'a.onnx', 'b.pth', 'a.jpg'],
     'a.onnx holds its weights: leave out the checkpoint b.pth'),
    (['app', 'retinanet_evit_m0_shapes'], 'name a checkpoint after retinanet_evit_m0_shapes, such '
     'as work_dirs/retinanet_evit_m0_shapes/epoch_12.pth: a config alone has no trained weights'),
])
def test_mistakes(arguments, message, folder, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f'error: {message}\n'


def test_flags_reach_the_page(folder, monkeypatch):
    from evit_runtime import page

    calls = []
    monkeypatch.setattr(command, 'load', lambda *arguments: arguments)
    monkeypatch.setattr(page, 'serve', lambda model, **options: calls.append((model, options)))
    assert main(['app', 'a.py', 'b.pth', '--port', '0', '--device', 'cuda', '--no-browser']) == 0
    assert calls == [(('a.py', 'b.pth', 'cuda'),
                      dict(port=0, score_threshold=0.3, browser=False))]
