"""Models whose parts fit pass untouched; the others are refused with both lists and a fix."""

import copy
import random
import re
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import get_installed_path

from evit_mm.engine.preflight.model import check_model
from evit_mm.errors import ConfigError

# Channels of the maps at strides 4, 8, 16 and 32: of ResNet-50 and of M0.
FROM_RESNET = {256: 16, 512: 32, 1024: 64, 2048: 128}
# In YOLOv3 and RTMDet, the neck's inputs at strides 8, 16 and 32.
FROM_DARKNET = {256: 32, 512: 64, 1024: 128}
FROM_CSPNEXT = {128: 32, 256: 64, 512: 128}

DETECTORS = [
    'detr/detr_r50_8xb2-150e_coco',
    'yolo/yolov3_d53_8xb8-320-273e_coco',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
]
MORE_DETECTORS = [
    'atss/atss_r50_fpn_1x_coco',
    'autoassign/autoassign_r50-caffe_fpn_1x_coco',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
    'centernet/centernet_r18_8xb16-crop512-140e_coco',
    'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco',
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance',
    'conditional_detr/conditional-detr_r50_8xb2-50e_coco',
    'dab_detr/dab-detr_r50_8xb2-50e_coco',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'dino/dino-4scale_r50_8xb2-12e_coco',
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco',
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'foveabox/fovea_r50_fpn_4xb4-1x_coco',
    'fpg/faster-rcnn_r50_fpg_crop640-50e_coco',
    'free_anchor/freeanchor_r50_fpn_1x_coco',
    'fsaf/fsaf_r50_fpn_1x_coco',
    'gfl/gfl_r50_fpn_1x_coco',
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco',
    'htc/htc_r50_fpn_1x_coco',
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'maskformer/maskformer_r50_ms-16xb1-75e_coco',
    'ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco',
    'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco',
    'paa/paa_r50_fpn_1x_coco',
    'pafpn/faster-rcnn_r50_pafpn_1x_coco',
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco',
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco',
    'queryinst/queryinst_r50_fpn_1x_coco',
    'retinanet/retinanet_r50_fpn_1x_coco',
    'rpn/rpn_r50_fpn_1x_coco',
    'rtmdet/rtmdet_s_8xb32-300e_coco',
    'sabl/sabl-cascade-rcnn_r50_fpn_1x_coco',
    'scnet/scnet_r50_fpn_1x_coco',
    'solo/solo_r50_fpn_1x_coco',
    'solov2/solov2_r50_fpn_1x_coco',
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco',
    'yolact/yolact_r50_1xb8-55e_coco',
    'yolof/yolof_r50-c5_8xb8-1x_coco',
]
SEGMENTORS = [
    'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512',
]
MORE_SEGMENTORS = [
    'ann/ann_r50-d8_4xb2-40k_cityscapes-512x1024',
    'apcnet/apcnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'danet/danet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024',
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
    'dmnet/dmnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024',
    'encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024',
    'gcnet/gcnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'isanet/isanet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
    'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024',
    'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024',
    'upernet/upernet_r50_4xb2-40k_cityscapes-512x1024',
]
FAMILIES = [
    pytest.param(package, name, id=name.split('/')[1], marks=[pytest.mark.slow] * slow)
    for package, names, slow in (
        ('mmdet', DETECTORS, False), ('mmdet', MORE_DETECTORS, True),
        ('mmseg', SEGMENTORS, False), ('mmseg', MORE_SEGMENTORS, True))
    for name in names]


def stock_model(package, name):
    """Return the model of one of MMDetection's or MMSegmentation's configs, on M0."""
    init_default_scope(package)
    path = Path(get_installed_path(package)) / '.mim' / 'configs' / f'{name}.py'
    model = Config.fromfile(path).model
    model.pop('pretrained', None)
    without_sync(model)
    kind = model.backbone.type
    table, first, out_indices = FROM_RESNET, 0, range(4)
    if kind == 'Darknet':
        table, first = FROM_DARKNET, 2
    elif kind == 'CSPNeXt':
        table, first, out_indices = FROM_CSPNEXT, 1, range(2, 5)
    levels = [i - first for i in model.backbone.get('out_indices', out_indices)]
    model.backbone = dict(
        type='EfficientViT', arch='m0', stem_strides=[(4, 8)[i] for i in levels if i < 2],
        out_indices=[i - 2 for i in levels if i >= 2])
    return model, table


def without_sync(part):
    """Replace SyncBN, which needs several processes to be built."""
    if isinstance(part, dict):
        if part.get('type') == 'SyncBN':
            part['type'] = 'BN'
        for value in part.values():
            without_sync(value)
    elif isinstance(part, list | tuple):
        for value in part:
            without_sync(value)


def parts_behind_the_backbone(model):
    """Yield the configs of what receives the backbone's maps."""
    neck = model.get('neck')
    if neck:
        yield neck[0] if isinstance(neck, list | tuple) else neck
        return
    for name in ('decode_head', 'auxiliary_head', 'panoptic_head', 'bbox_head', 'rpn_head'):
        heads = model.get(name) or []
        yield from heads if isinstance(heads, list | tuple) else [heads]


def adapt(model, table):
    for part in parts_behind_the_backbone(model):
        for key in ('in_channels', 'c1_in_channels'):
            value = part.get(key)
            if isinstance(value, int):
                part[key] = table.get(value, value)
            elif value is not None:
                part[key] = [table[channels] for channels in value]


@pytest.mark.parametrize('package,name', FAMILIES)
def test_stock_models(package, name):
    """Adapted ones pass; those that still have a ResNet's channels are refused with a fix."""
    model, table = stock_model(package, name)
    unadapted = copy.deepcopy(model)
    if name.startswith('centernet/centernet_r18'):
        table = {512: 128}
    adapt(model, table)
    check_model(MODELS.build(copy.deepcopy(model)))

    with pytest.raises(ConfigError) as caught:
        check_model(MODELS.build(copy.deepcopy(unadapted)), unadapted)
    text = str(caught.value)
    assert re.search(r'EfficientViT arch=\'m0\' returns feature maps with channels \[', text)
    apply_fix(unadapted, text)
    check_model(MODELS.build(unadapted))


def apply_fix(model, text):
    assert ': set ' in text, text
    for change in text.rpartition(': set ')[2].split(' and '):
        path, value = change.partition(' instead of ')[0].split('=')
        *path, key = path.split('.')
        part = model
        for step in path:
            part = part[int(step) if step.isdigit() else step]
        assert not isinstance(part, dict) or part.get(key) != literal_eval(value)
        part[key] = literal_eval(value)


@pytest.fixture
def retinanet(repository):
    init_default_scope('mmdet')
    model = Config.fromfile(repository / 'configs' / 'retinanet_evit_m0_coco.py').model
    model.bbox_head.update(stacked_convs=1, feat_channels=16, num_classes=2)
    return model


@pytest.fixture
def mask_rcnn(repository):
    init_default_scope('mmdet')
    model = Config.fromfile(repository / 'configs' / 'mask_rcnn_evit_m0_coco.py').model
    model.rpn_head.feat_channels = 16
    model.roi_head.bbox_head.update(fc_out_channels=16, num_classes=2)
    model.roi_head.mask_head.update(num_convs=1, conv_out_channels=16, num_classes=2)
    return model


@pytest.fixture
def semantic_fpn(repository):
    init_default_scope('mmseg')
    model = Config.fromfile(repository / 'configs' / 'semantic_fpn_evit_m0_ade20k.py').model
    model.decode_head.update(channels=16, num_classes=2)
    return model


@pytest.fixture
def upernet(repository):
    init_default_scope('mmseg')
    model = Config.fromfile(repository / 'configs' / 'upernet_evit_m0_ade20k.py').model
    model.decode_head.update(channels=16, num_classes=2)
    model.auxiliary_head.update(channels=16, num_classes=2)
    return model


def refuses(model, pattern, fix=None):
    """Check that a config is refused, and that the stated fix, if there is one, works."""
    built = MODELS.build(copy.deepcopy(model))
    with pytest.raises(ConfigError, match=pattern):
        check_model(built)
    with pytest.raises(ConfigError, match=pattern) as caught:
        check_model(built, model)
    if fix is not None:
        assert f': set {fix}' in str(caught.value)
        model = copy.deepcopy(model)
        apply_fix(model, str(caught.value))
        check_model(MODELS.build(model))


def test_nothing_is_changed(retinanet):
    retinanet.backbone.update(init_cfg=None, norm_eval=True)
    model = MODELS.build(retinanet).train()
    test_cfg = copy.deepcopy(model.test_cfg)
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    check_model(model, retinanet)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert model.test_cfg == test_cfg
    assert hooks == sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_numbers_are_not_drawn(retinanet):
    model = MODELS.build(copy.deepcopy(retinanet))
    retinanet.neck.in_channels = [1, 2, 3]
    wrong = MODELS.build(copy.deepcopy(retinanet))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    check_model(model)
    with pytest.raises(ConfigError):
        check_model(wrong, retinanet)  # builds others in search of a fix
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_a_neck_for_other_channels(retinanet):
    retinanet.neck.in_channels = [128, 256, 384]
    refuses(retinanet, r'\[128, 256, 384\].*m0.*\[64, 128, 192\]',
            'neck.in_channels=[64, 128, 192]')
    retinanet.neck = dict(type='FPN', in_channels=[256, 512, 1024], out_channels=256, num_outs=5)
    retinanet.bbox_head.anchor_generator.strides = [16, 32, 64, 128, 256]
    refuses(retinanet, r'FPN.*\[256, 512, 1024\].*\[64, 128, 192\] at strides \[16, 32, 64\]',
            'neck.in_channels=[64, 128, 192]')


def test_a_neck_for_more_maps(retinanet):
    retinanet.neck = dict(type='FPN', in_channels=[32, 64, 128, 192], out_channels=256, num_outs=5)
    refuses(retinanet, r'\[32, 64, 128, 192\].*channels \[64, 128, 192\]',
            'backbone.stem_strides=[8]')


def test_priors_at_other_strides(retinanet):
    retinanet.neck.num_extra_trans_convs = 0
    refuses(retinanet, r'\[8, 16, 32, 64, 128\].*\[16, 32, 64, 128, 256\]',
            'bbox_head.anchor_generator.strides=[16, 32, 64, 128, 256]')


def test_priors_for_another_number_of_maps(retinanet):
    retinanet.neck.num_outs = 6
    refuses(retinanet, r'\[8, 16, 32, 64, 128\].*\[8, 16, 32, 64, 128, 256\]',
            'bbox_head.anchor_generator.strides=[8, 16, 32, 64, 128, 256]')


def test_a_head_of_another_width(retinanet):
    retinanet.neck.out_channels = 128
    refuses(retinanet, r'bbox_head \(.*in_channels=256.*EfficientViTFPN.*128',
            'bbox_head.in_channels=128')


def test_several_heads_of_another_width(mask_rcnn):
    mask_rcnn.neck.out_channels = 128
    refuses(mask_rcnn, 'rpn_head.*in_channels=256.*128', 'neck.out_channels=256')


def test_extractors_that_pool_from_other_strides(mask_rcnn):
    mask_rcnn.neck.num_extra_trans_convs = 1
    mask_rcnn.rpn_head.anchor_generator.strides = [8, 16, 32, 64, 128]
    refuses(mask_rcnn, r'roi_extractor.*\[4, 8, 16, 32\].*\[8, 16, 32, 64\]')


@pytest.mark.parametrize('name', ['semantic_fpn', 'upernet'])
def test_decode_heads(name, request):
    model = request.getfixturevalue(name)
    right = list(model.decode_head.in_channels)
    model.decode_head.in_channels = [77, *right[1:]]
    refuses(model, rf'decode_head.*in_channels=\[77,.*channels \[{right[0]},',
            f'decode_head.in_channels={right}')
    model.decode_head.in_channels = right
    model.decode_head.in_index = [0, 1, 2, 4]
    refuses(model, r'in_index=\[0, 1, 2, 4\].*\[8, 16, 32, 64\]',
            'decode_head.in_index=[0, 1, 2, 3]')


def test_decode_head_of_other_strides(semantic_fpn):
    semantic_fpn.decode_head.feature_strides = [4, 8, 16, 32]
    check_model(MODELS.build(copy.deepcopy(semantic_fpn)))  # the same ratios
    semantic_fpn.decode_head.feature_strides = [8, 16, 32, 32]
    refuses(semantic_fpn, r'feature_strides=\[8, 16, 32, 32\].*\[8, 16, 32, 64\]',
            'decode_head.feature_strides=[8, 16, 32, 64]')


def test_auxiliary_heads(upernet):
    upernet.auxiliary_head.in_channels = 256
    refuses(upernet, r'auxiliary_head \(FCNHead\).*in_channels=256.*\[32, 64, 128, 192\]',
            'auxiliary_head.in_channels=64')
    head = dict(upernet.auxiliary_head, in_channels=64)
    upernet.auxiliary_head = [head, dict(head, in_index=2)]
    refuses(upernet, r'auxiliary_head\.1 \(FCNHead\).*in_channels=64',
            'auxiliary_head.1.in_channels=128')
    both = dict(head, in_index=[1, 2], input_transform='resize_concat', in_channels=[64, 128])
    upernet.auxiliary_head = [head, both]
    check_model(MODELS.build(upernet))


def test_models_inside_others(retinanet):
    retinanet.neck.in_channels = [1, 2, 3]
    teacher = torch.nn.ModuleDict(dict(teacher=MODELS.build(copy.deepcopy(retinanet))))
    with pytest.raises(ConfigError, match='neck.in_channels='):
        check_model(teacher, dict(teacher=retinanet))


def test_config_of_test_time_augmentation(semantic_fpn):
    semantic_fpn.decode_head.in_channels = [1, 2, 3, 4]
    with pytest.raises(ConfigError, match='set decode_head.in_channels='):
        check_model(MODELS.build(copy.deepcopy(semantic_fpn)),
                    dict(type='SegTTAModel', module=semantic_fpn))


def test_shape_errors_that_the_model_handles_itself(retinanet):
    class Neck(torch.nn.Module):
        def __init__(self, neck):
            super().__init__()
            self.neck = neck
            self.wrong = torch.nn.Conv2d(5, 5, 1)

        def forward(self, maps):
            try:
                self.wrong(maps[0])
            except RuntimeError:
                return self.neck(maps)

    model = MODELS.build(retinanet)
    model.neck = Neck(model.neck)
    check_model(model)


def test_models_of_other_backbones_are_not_run():
    class Own(torch.nn.Module):
        backbone = torch.nn.Conv2d(3, 8, 1)

        def forward(self, *args, **kwargs):
            raise AssertionError

    check_model(Own())
