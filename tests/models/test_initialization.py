"""Weights start from the distributions of the reference, tensor by tensor."""

import math
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from evit_mm.models import ARCHS, EfficientViT, EfficientViTFPN

# The normalisations whose scale starts at 0; all others start at 1. Those of the depthwise
# convolutions next to the merging, `downsample.dw_conv1` and `dw_conv2`, are among the others.
ZERO_SCALES = (r'blocks.\d+.dw_conv\d.norm.weight', r'ffn\d.project.norm.weight',
               r'attn.proj.norm.weight')


def assert_uniform(name, tensor, bound):
    """Check a uniform distribution over (-bound, bound) by its extent and its moments."""
    count = tensor.numel()
    assert tensor.abs().max() <= bound * (1 + 1e-6), name
    # Seven standard errors of the mean and of the mean square (variance 4/45 for bound 1).
    assert abs(tensor.mean()) < 7 * bound / math.sqrt(3 * count), name
    assert abs((tensor / bound).square().mean() - 1 / 3) < 7 * math.sqrt(4 / 45 / count), name


def assert_normal(name, tensor, std):
    count = tensor.numel()
    assert abs(tensor.mean()) < 7 * std / math.sqrt(count), name
    assert abs((tensor / std).square().mean() - 1) < 7 * math.sqrt(2 / count), name
    assert count < 1000 or tensor.abs().max() > 2.5 * std, f'{name} has no tails'


def assert_backbone(model):
    for name, tensor in model.state_dict().items():
        if name.endswith('norm.weight'):
            start = 0.0 if any(re.search(pattern, name) for pattern in ZERO_SCALES) else 1.0
            assert torch.all(tensor == start), name
        elif name.endswith('running_var'):
            assert torch.all(tensor == 1), name
        elif name.endswith(('norm.bias', 'running_mean', 'num_batches_tracked',
                            'attention_biases')):
            assert torch.all(tensor == 0), name
        elif name.endswith(('conv.weight', 'reduce.weight', 'expand.weight')):
            assert_uniform(name, tensor, 1 / math.sqrt(tensor[0].numel()))  # torch's default
        else:
            assert name.endswith(('reduce.bias', 'expand.bias')), name
            weight = model.state_dict()[name.replace('bias', 'weight')]
            assert_uniform(name, tensor, 1 / math.sqrt(weight[0].numel()))


@pytest.mark.parametrize('arch', ARCHS)
def test_backbone(arch):
    model = EfficientViT(arch)
    model.init_weights()
    assert_backbone(model)
    scales = {name for name, tensor in model.named_parameters() if torch.all(tensor == 0)
              and name.endswith('norm.weight')}
    # Per block: two depthwise convolutions, two FFNs and one attention; per step between stages,
    # the two FFNs.
    assert len(scales) == 5 * sum(ARCHS[arch].depths) + 2 * 2


def assert_neck(neck):
    for name, tensor in neck.state_dict().items():
        if name.endswith('bias'):
            assert torch.all(tensor == 0), name
        elif 'trans' in name:
            # MSRA by fan-out, which torch counts over the first dimension of this layout.
            assert_normal(name, tensor, math.sqrt(2 / (tensor.shape[0] * tensor[0, 0].numel())))
        else:
            out, channels, height, width = tensor.shape
            assert_uniform(name, tensor, math.sqrt(6 / ((out + channels) * height * width)))


def test_neck():
    neck = EfficientViTFPN([128, 256, 384], 256, num_outs=6, num_extra_trans_convs=2)
    neck.init_weights()
    assert_neck(neck)
    assert abs(neck.extra_trans_convs[0].conv.weight.std() - 0.0442) < 3e-4


@pytest.mark.parametrize('detector', ['retinanet', 'mask_rcnn'])
def test_published_detectors_from_scratch(detector, repository):
    """mmdet's initialisation of a whole model leaves the backbone's and the neck's as they are."""
    config = Config.fromfile(repository / 'configs' / f'{detector}_evit_m4_coco.py')
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    model.init_weights()
    assert_backbone(model.backbone)
    assert_neck(model.neck)
    heads = dict(model.named_parameters())
    if detector == 'mask_rcnn':
        assert_normal('rpn', heads['rpn_head.rpn_conv.weight'], 0.01)
        return
    towers = [f'{tower}_convs.{i}.conv' for tower in ('cls', 'reg') for i in range(4)]
    for layer in [*towers, 'retina_cls', 'retina_reg']:
        assert_normal(layer, heads[f'bbox_head.{layer}.weight'], 0.01)
    # The prior of the focal loss: every class starts with a probability of 0.01.
    assert torch.allclose(heads['bbox_head.retina_cls.bias'],
                          torch.tensor(-math.log(0.99 / 0.01)))
    assert torch.all(heads['bbox_head.retina_reg.bias'] == 0)
