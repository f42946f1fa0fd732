"""Exported files predict what the models in PyTorch do."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from small_models import DETECTORS, SEGMENTORS, small_config

from evit_mm.deployment.export import export
from evit_mm.deployment.export.verify import compare_results
from evit_mm.errors import UserError
from evit_mm.predict import load_model
from evit_runtime import load_model as load_exported
from evit_runtime.metadata import KEY

FIXED = dict(size=(96, 160), batch_size=2)


def check(model, expected_model, images):
    """Assert that two models predict the same in images, and something in one of them."""
    found = model(images, score_threshold=0.0)
    expected = expected_model(images, score_threshold=0.0)
    for one, other in zip(expected, found, strict=True):
        difference = compare_results(one, other, model.metadata)
        assert difference.is_within_bounds, difference.text
    assert sum(map(len, expected))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn', 'upernet'])
def test_a_file_for_any_size_gives_the_results_of_pytorch(name, exported, weights, picture):
    model = load_exported(exported(name))
    assert model.metadata.preprocessing.size is None
    images = [picture(90, 160), picture(133, 71, 1), picture(90, 160, 2)]
    expected = load_model(*weights(name))
    check(model, expected, images)
    batch = model(images, score_threshold=0.0, batch_size=3)
    single = model(images, score_threshold=0.0)
    for one, other in zip(batch, single, strict=True):
        assert compare_results(one, other, model.metadata).is_within_bounds


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet', 'upernet'])
def test_openvino_reads_both_formats(name, exported, weights, picture):
    expected = load_model(*weights(name))
    for path in (exported(name), exported(name, '.xml')):
        model = load_exported(path, backend='openvino', threads=1)
        assert model.session.backend == 'openvino'
        check(model, expected, [picture(90, 160), picture(64, 64)])


def test_a_file_of_a_fixed_size_takes_any_image(exported, weights, picture):
    model = load_exported(exported('retinanet', **FIXED))
    images = [picture(90, 160), picture(200, 90, 1), picture(48, 40, 2)]
    results = model(images, score_threshold=0.0, batch_size=3)
    for image, result in zip(images, results, strict=True):
        assert result.shape == image.shape[:2]
        assert (result.boxes >= 0).all()
        assert (result.boxes[:, 2::2] <= image.shape[1] + 0.01).all()
    # The first fills the file as the config's own pipeline would.
    expected = load_model(*weights('retinanet'))
    check(model, expected, images[:1])


@pytest.mark.slow
def test_a_program_of_torch_runs_in_evit_mm(exported, weights, picture):
    path = exported('retinanet', '.pt2', size=(96, 160))
    check(load_model(path), load_model(*weights('retinanet')), [picture(90, 160)])


@pytest.mark.slow
def test_the_backbone_alone_gives_its_maps(tmp_path, weights, picture):
    config, checkpoint = weights('retinanet')
    path = export(config, checkpoint, out=tmp_path / 'backbone.onnx', backbone=True,
                  size=(64, 96))
    image = picture(64, 96)
    maps = onnxruntime.InferenceSession(path).run(None, {'images': image[None]})
    module = load_model(config, checkpoint).module
    data = module.data_preprocessor(dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)]))
    with torch.no_grad():
        expected = module.backbone(data['inputs'])
    assert len(maps) == len(expected)
    for one, other in zip(maps, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match='backbone alone'):
        load_exported(path)


def test_the_metadata_says_what_the_file_is(exported):
    path = exported('retinanet', **FIXED)
    session = onnxruntime.InferenceSession(path)
    content = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
    assert content['task'] == 'detection'
    assert content['preprocessing']['size'] == [96, 160] and content['batch'] == 2
    assert len(content['class_names']) == len(content['palette']) == 5
    assert content['nms'] == {'type': 'nms', 'iou_threshold': 0.5}
    assert content['score_threshold'] == 0.05 and content['max_objects'] == 20
    assert content['preprocessing']['divisor'] == 32
    assert {'evit-mm', 'torch', 'opset'} <= content['versions'].keys()
    assert b'site-packages' not in path.read_bytes()  # paths of the machine that wrote it
    assert [each.name for each in session.get_inputs()] == ['images', 'sizes']
    assert session.get_inputs()[0].type == 'tensor(uint8)'


def test_there_is_no_control_flow(exported):
    import onnx

    kinds = {node.op_type for node in onnx.load(exported('retinanet', **FIXED)).graph.node}
    assert not kinds & {'If', 'Loop', 'Scan'}
    assert 'NonMaxSuppression' in kinds


@pytest.mark.slow
def test_half_precision_halves_the_file(exported, weights, picture):
    whole, half = (exported('retinanet', **FIXED, precision=precision)
                   for precision in ('fp32', 'fp16'))
    assert half.stat().st_size < 0.8 * whole.stat().st_size
    expected = load_model(*weights('retinanet'))([picture(90, 160)], score_threshold=0.0)[0]
    model = load_exported(half)
    found = model([picture(90, 160)], score_threshold=0.0)[0]
    assert compare_results(expected, found, model.metadata).is_within_bounds


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet', 'evit_det'])
def test_int8_quantizes_the_network_alone(name, tmp_path, weights, picture):
    import cv2
    import openvino

    for number in range(4):
        cv2.imwrite(str(tmp_path / f'{number}.png'), picture(90, 160, number))
    config, checkpoint = weights(name)
    path = export(config, checkpoint, out=tmp_path / 'model.xml', size=(96, 160),
                  precision='int8', calibrate=tmp_path, verify=False)
    nodes = openvino.Core().read_model(path).get_ordered_ops()
    kinds = [node.get_type_name() for node in nodes]
    assert kinds.count('FakeQuantize') > 20
    suppression = next(node for node in nodes if node.get_type_name() == 'NonMaxSuppression')
    waiting, seen = [suppression], set()
    while waiting:  # back to the convolutions of the head
        node = waiting.pop()
        if node.get_name() in seen or node.get_type_name() in ('Convolution', 'Parameter'):
            continue
        seen.add(node.get_name())
        assert node.get_type_name() != 'FakeQuantize'
        waiting += [node.input_value(k).get_node() for k in range(node.get_input_size())]
    assert len(load_exported(path)([picture(90, 160)], score_threshold=0.0)[0])


@pytest.mark.parametrize(('options', 'message'), [
    (dict(out='model.pb'), r'ends in \.onnx'),
    (dict(out='model.onnx', precision='int8', calibrate='.'), 'for OpenVINO'),
    (dict(out='model.xml', precision='int8'), '--calibrate'),
    (dict(out='model.onnx', size=(4, 4)), 'at least 32'),
    (dict(out='model.onnx', size=(64, 64), dynamic=True), 'leave one of them out'),
    (dict(out='model.pt2', dynamic=True), 'fixed size'),
    (dict(out='model.onnx', batch_size=3), 'pass --size too'),
    (dict(out='missing/model.onnx'), 'no such folder'),
    (dict(out='model.xml', precision='int8', calibrate='missing'), 'no such folder: missing'),
])
def test_options_that_cannot_work(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        export('retinanet_evit_m0_coco', **options)
    assert not list(tmp_path.iterdir())


def test_a_part_that_cannot_be_exported_leaves_no_file(tmp_path):
    config = small_config('retinanet')
    config.test_dataloader.dataset.pipeline.insert(1, dict(type='Rotate', level=1))
    config.dump(tmp_path / 'config.py')
    with pytest.raises(UserError, match='Rotate.*can\'t be exported yet'):
        export(tmp_path / 'config.py', out=tmp_path / 'model.onnx')
    assert [path.name for path in tmp_path.iterdir()] == ['config.py']


@pytest.mark.slow
def test_a_file_that_differs_is_not_written(tmp_path, weights, monkeypatch):
    from evit_mm.deployment.export import run

    config, checkpoint = weights('retinanet')
    real = run.build_module

    def wrong(model, **options):
        module = real(model, **options)
        module.inputs.mean += 30
        return module

    monkeypatch.setattr(run, 'build_module', wrong)
    (tmp_path / 'model.onnx').write_bytes(b'as before')
    with pytest.raises(UserError, match='is not written'):
        export(config, checkpoint, out=tmp_path / 'model.onnx', size=(96, 160))
    assert (tmp_path / 'model.onnx').read_bytes() == b'as before'
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_nothing_behind(tmp_path, weights, monkeypatch):
    import errno

    from evit_mm.deployment.export import run

    def full(*arguments):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(run, 'to_onnx', full)
    config, checkpoint = weights('retinanet')
    with pytest.raises(UserError, match='can\'t write model.onnx: No space left on device'):
        export(config, checkpoint, out=tmp_path / 'model.onnx', verify=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_every_head(name, exported, weights, picture):
    expected = load_model(*weights(name))
    images = [picture(90, 160), picture(133, 71, 1), picture(64, 200, 2)]
    for backend in ('onnxruntime', 'openvino'):
        check(load_exported(exported(name), backend=backend), expected, images)
    fixed = load_exported(exported(name, size=(96, 128)))
    assert fixed([picture(90, 160)])[0].shape == (90, 160)


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['m0', 'm4'])
@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn', 'upernet', 'semantic_fpn'])
def test_ready_configs(name, arch, tmp_path, picture):
    from small_models import sharpen

    dataset = 'coco' if name in DETECTORS else 'ade20k'
    config = f'{name}_evit_{arch}_{dataset}'
    options = {'model.backbone.init_cfg': None}
    from evit_mm.engine.config import load_config

    expected = load_model(load_config(config, options))
    sharpen(expected.module, gain=1.0 if name in DETECTORS else 1.5)
    checkpoint = tmp_path / 'weights.pth'
    torch.save({'state_dict': expected.module.state_dict()}, checkpoint)
    images = [picture(200, 300), picture(301, 211, 1), picture(200, 300, 2)]
    path = export(config, checkpoint, out=tmp_path / 'model.onnx', cfg_options=options)
    for backend in ('onnxruntime', 'openvino'):
        model = load_exported(path, backend=backend)
        found = model(images, score_threshold=0.0, batch_size=3)
        for one, other in zip(expected(images, score_threshold=0.0), found, strict=True):
            difference = compare_results(one, other, model.metadata)
            assert difference.is_within_bounds, difference.text
    path = export(config, checkpoint, out=tmp_path / 'fixed.onnx', size=(320, 416),
                  cfg_options=options)
    assert load_exported(path)(images[:1])[0].shape == (200, 300)
