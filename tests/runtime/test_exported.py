"""Files that are no exported models are refused in a sentence."""

import json
import subprocess
import sys

import numpy as np
import pytest
from exported_files import METADATA, write

from evit_runtime import UserError, load_model


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_file_predicts(tmp_path, backend):
    model = load_model(write(tmp_path / 'model.onnx'), backend)
    assert model.task == 'detection' and model.class_names == ('cat', 'dog')
    images = [np.zeros((9, 7, 3), np.uint8), np.zeros((5, 8, 3), np.uint8)]
    for result, image in zip(model(images, batch_size=2), images, strict=True):
        assert result.names == ['dog'] and result.scores == pytest.approx([0.75])
        assert result.boxes.tolist() == [[0, 0, image.shape[1], image.shape[0]]]


def changed(**values):
    return json.dumps(json.loads(METADATA.to_json()) | values)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize(('options', 'message'), [
    (dict(metadata=None), 'was not written by evit-mm export'),
    (dict(metadata='nonsense'), 'not JSON'),
    (dict(metadata=changed(format=99)), 'a later version'),
    (dict(metadata='{"format": 1}'), 'damaged'),
    (dict(inputs=('pixels', 'sizes')), 'has the inputs pixels, sizes, but its metadata says '
                                       'images, sizes'),
    (dict(metadata=changed(task='features')), 'backbone alone'),
])
def test_a_file_of_another_kind(tmp_path, backend, options, message):
    with pytest.raises(UserError, match=message):
        load_model(write(tmp_path / 'model.onnx', **options), backend)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('damage', [
    lambda data: data[:len(data) // 2], lambda data: b'not a model', lambda data: b''])
def test_a_damaged_file(tmp_path, backend, damage):
    path = write(tmp_path / 'model.onnx')
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match='model.onnx'):
        load_model(path, backend)


def test_an_opset_of_the_future(tmp_path):
    with pytest.raises(UserError, match='can\'t be loaded by onnxruntime'):
        load_model(write(tmp_path / 'model.onnx', opset=99), 'onnxruntime')


def test_openvino_needs_both_files(tmp_path):
    (tmp_path / 'model.xml').write_text('<net/>')
    with pytest.raises(UserError, match='can\'t be loaded by OpenVINO'):
        load_model(tmp_path / 'model.xml')


@pytest.mark.parametrize(('name', 'options', 'message'), [
    ('missing.onnx', {}, 'no such file: .*missing.onnx'),
    ('weights.pth', {}, 'end in .onnx or .xml'),
    ('model.onnx', dict(backend='tensorrt'), 'no such backend: tensorrt'),
    ('model.onnx', dict(precision='bf16'), 'leave precision=bf16 out'),
    ('model.onnx', dict(backend='openvino', precision='fp8'), 'no such precision: fp8'),
    ('model.xml', dict(backend='onnxruntime'), 'OpenVINO\'s format'),
])
def test_arguments_that_cannot_work(tmp_path, name, options, message):
    if name != 'missing.onnx':
        write(tmp_path / name)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / name, **options)


def test_a_file_runs_without_torch(tmp_path):
    path = write(tmp_path / 'model.onnx')
    code = ('import sys\n'
            'for name in ("torch", "mmengine", "mmcv", "evit_mm"):\n'
            '    sys.modules[name] = None\n'
            'import numpy as np\n'
            'from evit_runtime import load_model\n'
            f'print(load_model({str(path)!r})(np.zeros((9, 7, 3), np.uint8)))\n')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'dog' in done.stdout
