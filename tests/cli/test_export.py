"""The command evit-mm export hands its flags to `evit_mm.export`."""

from pathlib import Path

import pytest

import evit_mm.deployment.export
from evit_mm.cli.main import main


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The arguments of each export; files are written with 3 MB."""
    given = []

    def export(config, checkpoint=None, *, out, report, **options):
        given.append((config, checkpoint, Path(out).name, options))
        report('compared')
        Path(out).write_bytes(b'0' * 3_000_000)
        return Path(out)

    monkeypatch.setattr(evit_mm.deployment.export, 'export', export)
    return given


def test_flags_become_arguments(calls, tmp_path, capsys):
    out = tmp_path / 'model.xml'
    assert main(['export', 'retinanet_evit_m4_coco', 'a.pth', '--out', str(out), '--size', '480',
                 '640', '--batch-size', '2', '--precision', 'int8', '--calibrate', 'images',
                 '--image', 'a.jpg', '--no-verify', '--backbone', '--cfg-options', 'a.b=1']) == 0
    assert calls == [('retinanet_evit_m4_coco', 'a.pth', 'model.xml', dict(
        size=[480, 640], dynamic=None, batch_size=2, precision='int8', calibrate='images',
        verify=False, image='a.jpg', backbone=True, cfg_options={'a.b': 1}))]
    assert capsys.readouterr().out == f'compared\n{out}: 3.0 MB, and {tmp_path / "model.bin"}\n'


def test_defaults(calls, tmp_path):
    assert main(['export', 'm4', 'a.pth', '--out', str(tmp_path / 'm4.onnx'), '--dynamic']) == 0
    assert calls[0][3] == dict(size=None, dynamic=True, batch_size=1, precision='fp32',
                               calibrate=None, verify=True, image=None, backbone=False,
                               cfg_options=None)


def test_mistakes_end_with_a_sentence(tmp_path, capsys):
    assert main(['export', 'm4', '--out', str(tmp_path / 'm4.onnx')]) == 2
    assert 'evit://efficientvit_m4' in capsys.readouterr().err
    assert main(['export', 'm4', 'a.pth', '--out', str(tmp_path / 'm4.tflite')]) == 2
    assert 'ends in .onnx' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['export', 'm4', '--out', 'a.onnx', '--size', '64', '64', '--dynamic'])
