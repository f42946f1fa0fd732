"""A model whose parts do not fit ends when it is built, with a sentence."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from evit_mm.errors import ConfigError
from evit_mm.models import EfficientViT


@pytest.fixture
def model(repository):
    init_default_scope('mmdet')
    return Config.fromfile(repository / 'configs' / 'retinanet_evit_m0_coco.py').model


def test_neck_of_other_channels(model):
    model.neck.in_channels = [128, 256, 384]
    with pytest.raises(ConfigError, match=r'\[128, 256, 384\].*m0.*\[64, 128, 192\]'):
        MODELS.build(model)


def test_stock_fpn_of_other_channels(model):
    model.neck = dict(type='FPN', in_channels=[256, 512, 1024], out_channels=256, num_outs=5)
    with pytest.raises(ConfigError, match=r'FPN .*\[256, 512, 1024\].*\[64, 128, 192\]'):
        MODELS.build(model)


def test_neck_of_other_strides(model):
    model.backbone.stem_strides = [8]
    model.neck.in_channels = [32, 64, 128, 192]
    with pytest.raises(ConfigError, match=r'\[16, 32, 64, 128\].*\[8, 16, 32, 64\]'):
        MODELS.build(model)
    model.neck.update(in_strides=[8, 16, 32, 64], num_extra_trans_convs=0, num_outs=5)
    assert MODELS.build(model).neck.out_strides == (8, 16, 32, 64, 128)


def test_head_with_priors_at_other_strides(model):
    model.neck.num_extra_trans_convs = 0
    with pytest.raises(ConfigError, match=r'\[8, 16, 32, 64, 128\].*\[16, 32, 64, 128, 256\]'):
        MODELS.build(model)


def test_head_of_another_width(model):
    model.neck.out_channels = 128
    with pytest.raises(ConfigError, match='in_channels=256.*128'):
        MODELS.build(model)


def test_stock_fpn_from_the_stem(model):
    """A plain FPN can start at stride 4 or 8 without the project's own neck."""
    model.backbone.stem_strides = [8]
    model.neck = dict(type='FPN', in_channels=[32, 64, 128, 192], out_channels=256, num_outs=5)
    built = MODELS.build(model)
    assert isinstance(built.backbone, EfficientViT)
    assert built.backbone.out_strides == (8, 16, 32, 64)


def test_extractors_that_pool_from_other_strides(repository):
    init_default_scope('mmdet')
    model = Config.fromfile(repository / 'configs' / 'mask_rcnn_evit_m0_coco.py').model
    model.neck.num_extra_trans_convs = 1
    model.rpn_head.anchor_generator.strides = [8, 16, 32, 64, 128]
    with pytest.raises(ConfigError, match=r'bbox_roi_extractor.*\[4, 8, 16, 32\].*\[8, 16'):
        MODELS.build(model)


@pytest.fixture
def segmentor(repository):
    init_default_scope('mmseg')
    model = Config.fromfile(repository / 'configs' / 'upernet_evit_m0_ade20k.py').model
    return Config.fromfile(repository / 'configs' / 'semantic_fpn_evit_m0_ade20k.py').model, model


def test_decode_head_of_other_channels(segmentor):
    for model in segmentor:
        width = model.decode_head.in_channels[0]
        model.decode_head.in_channels = [77, *model.decode_head.in_channels[1:]]
        with pytest.raises(ConfigError, match=rf'decode_head.*in_channels=\[77,.*\[{width},'):
            MODELS.build(model)


def test_decode_head_of_maps_that_are_not_there(segmentor):
    for model in segmentor:
        model.decode_head.in_index = [0, 1, 2, 4]
        with pytest.raises(ConfigError, match=r'\[0, 1, 2, 4\].*4 maps.*\[8, 16, 32, 64\]'):
            MODELS.build(model)


def test_decode_head_of_other_strides(segmentor):
    model, _ = segmentor
    model.decode_head.feature_strides = [4, 8, 16, 32]
    MODELS.build(model)  # the same steps, counted from another start
    model.decode_head.feature_strides = [8, 16, 32, 32]
    with pytest.raises(ConfigError, match=r'feature_strides=\[8, 16, 32, 32\].*\[8, 16, 32, 64\]'):
        MODELS.build(model)


def test_auxiliary_heads(segmentor):
    _, model = segmentor
    model.auxiliary_head.in_channels = 256
    with pytest.raises(ConfigError, match='auxiliary_head.*in_channels=256.*in_channels to 64'):
        MODELS.build(model)
    head = dict(model.auxiliary_head, in_channels=64)
    model.auxiliary_head = [head, dict(head, in_index=2)]
    with pytest.raises(ConfigError, match='head 1 .*in_channels=64.*in_channels to 128'):
        MODELS.build(model)
    both = dict(head, in_index=[1, 2], input_transform='resize_concat', in_channels=[64, 128])
    model.auxiliary_head = [head, both]
    MODELS.build(model)
