"""The exported modules compute what MMDetection's and MMSegmentation's models do."""

import copy

import pytest
import torch
from random_models import randomize, relative_error
from small_models import DENSE, SEGMENTORS, TWO_STAGE, small_config, small_model

from evit_mm.deployment import deploy
from evit_mm.deployment.export.build import build_module, size_divisor
from evit_mm.deployment.export.verify import drawn_image
from evit_mm.deployment.layers import FoldedAttention, FoldedFeedForward
from evit_mm.engine.config import load_config
from evit_mm.errors import ConfigError
from evit_mm.models import EfficientViT
from evit_mm.predict import load_model

SIZES = [(96, 160), (64, 64), (90, 131)]


def batch(module, model, size, count=3):
    """Return images, their sizes, and the images as the model's preprocessor makes them."""
    from mmdet.structures import DetDataSample

    divisor = size_divisor(model)
    rows, columns = (-(-length // divisor) * divisor for length in size)
    sizes = [size, *[(size[0] - 7 * k, size[1] - 5 * k) for k in range(1, count)]]
    images = torch.randint(0, 256, (count, rows, columns, 3), dtype=torch.uint8)
    data = model.data_preprocessor(dict(
        inputs=[image[:h, :w].permute(2, 0, 1) for image, (h, w) in zip(images, sizes,
                                                                        strict=True)],
        data_samples=[DetDataSample(metainfo=dict(img_shape=each, ori_shape=each,
                                                  scale_factor=(1.0, 1.0))) for each in sizes]))
    return images, torch.tensor(sizes), data


@torch.no_grad()
def compare(model, module, size, same_maps):
    images, sizes, data = batch(module, model, size)
    inputs = module.inputs(images, sizes)
    assert torch.equal(inputs, data['inputs'])
    expected = model.predict(data['inputs'], data['data_samples'], rescale=False)
    outputs = same_maps(module, data['inputs'], sizes)
    for index, sample in enumerate(expected):
        instances = sample.pred_instances
        count = len(instances)
        boxes, scores, labels = (output[index] for output in outputs[:3])
        yield instances, boxes[:count], scores[:count], labels[:count], count
        assert (scores[count:] == 0).all() and (labels[count:] == -1).all()
        if len(outputs) == 4:
            kept = outputs[3][index][:count]
            assert ((kept >= 0) & (kept <= 1)).all() and kept.shape[1:] == (28, 28)


@pytest.mark.parametrize('any_size', [False, True])
@torch.no_grad()
def test_the_form_for_runtimes_has_the_same_maps(any_size):
    model = randomize(EfficientViT('m2', window_sizes=(7, 5, 3))).eval()
    images = [torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
              for size in ((97, 131), (224, 224), (33, 17))]
    plain = build_module(copy.deepcopy(model), any_size=True)
    module = build_module(deploy(model), any_size=any_size)
    assert not any(isinstance(layer, FoldedFeedForward) for layer in module.modules())
    assert {layer.any_size for layer in module.modules() if isinstance(layer, FoldedAttention)} \
        == {any_size}
    for each in images:
        assert relative_error(module(each), plain(each)) < 1e-5


@pytest.mark.parametrize('any_size', [False, True])
@pytest.mark.parametrize('name', DENSE)
def test_dense_heads_give_the_same_boxes(name, any_size):
    model = small_model(name).module
    module = build_module(model, any_size=any_size)
    found = 0
    for size in SIZES:
        # The same memory format: a convolution of another one rounds differently.
        for instances, boxes, scores, labels, count in compare(
                model, module, size, lambda m, x, sizes: m.decode(m.network(x), sizes)):
            # TOOD samples by other sums.
            torch.testing.assert_close(boxes, instances.bboxes, rtol=0,
                                       atol=0.02 if name == 'tood' else 0)
            # Sigmoids of few and of many values may differ in the last bit.
            is_last_bit = name in ('fcos', 'atss', 'evit_det', 'yolox')
            torch.testing.assert_close(scores, instances.scores, rtol=0,
                                       atol=1e-7 if is_last_bit else 0)
            assert torch.equal(labels, instances.labels)
            found += count
    assert found > 20


def run_two_stage(module, inputs, sizes):
    features = module.network(inputs)
    found = module.detect(features, *module.propose(features, sizes), sizes)
    return (*found, *([] if module.masks is None else [module.masks(features, found[0],
                                                                    found[2])]))


@pytest.mark.parametrize('any_size', [False, True])
@pytest.mark.parametrize('name', TWO_STAGE)
def test_two_stages_give_the_same_boxes(name, any_size):
    model = small_model(name).module
    module = build_module(model, any_size=any_size)
    found = 0
    for size in SIZES:
        for instances, boxes, scores, labels, count in compare(model, module, size, run_two_stage):
            assert torch.equal(boxes, instances.bboxes)
            assert torch.equal(scores, instances.scores)
            assert torch.equal(labels, instances.labels)
            found += count
    assert found > 20


@pytest.mark.parametrize('size', [(96, 128), (135, 213)])
@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors_give_the_same_label_map(name, size):
    from mmseg.structures import SegDataSample

    model = small_model(name).module
    images = torch.from_numpy(drawn_image(size))[None].repeat(2, 1, 1, 1)
    images[1] = images[1].flip(1)
    with torch.no_grad():
        data = model.data_preprocessor(dict(
            inputs=[image.permute(2, 0, 1) for image in images],
            data_samples=[SegDataSample(metainfo=dict(img_shape=size, ori_shape=(101, 97)))
                          for _ in images]))
        expected = torch.stack([sample.pred_sem_seg.data[0] for sample in model.predict(
            data['inputs'], data['data_samples'])])
        found, = build_module(model, any_size=True)(images, torch.tensor([101, 97]))
    assert expected.unique().numel() > 1
    assert (found == expected).float().mean() > 0.9999


def test_nothing_is_found_where_scores_are_low():
    model = small_model('retinanet').module
    torch.nn.init.constant_(model.bbox_head.retina_cls.bias, -100)
    module = build_module(model, any_size=True)
    boxes, scores, labels = module(torch.zeros((2, 64, 64, 3), dtype=torch.uint8),
                                   torch.tensor([[64, 64]] * 2))
    assert not boxes.any() and not scores.any() and (labels == -1).all()


def set_test_cfg(config, **values):
    config.model.test_cfg.update(values)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda config: set_test_cfg(config, nms=dict(type='soft_nms', iou_threshold=0.5)),
     'soft_nms'),
    (lambda config: set_test_cfg(config, nms_pre=-1), 'nms_pre'),
    (lambda config: set_test_cfg(config, max_per_img=-1), 'max_per_img'),
    (lambda config: config.model.bbox_head.update(bbox_coder=dict(
        type='DeltaXYWHBBoxCoderForGLIP', target_means=[0.0] * 4, target_stds=[1.0] * 4)),
     'DeltaXYWHBBoxCoderForGLIP'),
])
def test_what_cannot_be_exported_is_named(change, message):
    config = small_config('retinanet')
    change(config)
    with pytest.raises(ConfigError, match=message):
        build_module(small_model('retinanet', config).module, any_size=False)


@pytest.mark.parametrize(('name', 'part'), [
    ('dino_evit_m4_coco', 'the detector DINO'),
    ('mask2former_evit_m4_ade20k', 'the head Mask2FormerHead')])
def test_a_ready_config_that_cannot_be_exported_yet(name, part):
    config = load_config(name, {'model.backbone.init_cfg': None})
    with pytest.raises(ConfigError, match=f'{part} of this config can\'t be exported yet'):
        build_module(load_model(config, check=False).module, any_size=True)


def test_a_sliding_segmentor_is_refused():
    config = small_config('upernet')
    config.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    with pytest.raises(ConfigError, match='mode=whole'):
        build_module(small_model('upernet', config).module, any_size=False)
