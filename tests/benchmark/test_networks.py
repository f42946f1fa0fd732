"""Networks have the parts and weights that they should have."""

import sys

import pytest
import torch
from torch import nn

from evit_mm.benchmark.networks import build_networks, default_peers, randomize
from evit_mm.errors import UserError


@torch.no_grad()
def outputs_of(network, image):
    x = image
    for part in network.model.values():
        x = part(x)
    return x


def largest_error(actual, expected):
    return max(((a - e).abs().max() / e.abs().max()).item()
               for a, e in zip(actual, expected, strict=True))


def test_timms_port_has_our_weights():
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    ours, theirs, others = build_networks(
        ['m0', 'timm://efficientvit_m0', 'timm://efficientvit_m0?img_size=224'], with_neck=True)
    image = torch.randn(1, 3, 160, 224)
    expected = outputs_of(ours, image)
    assert [x.shape[2:] for x in expected] == [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]
    assert largest_error(outputs_of(theirs, image), expected) < 1e-5
    assert (ours.weights, theirs.weights, theirs.arch, theirs.peer) == ('m0', 'm0', 'm0', True)
    # As timm builds it by default, the last stage has windows of 4.
    assert others.weights != 'm0' and others.arch == 'm0'
    assert largest_error(outputs_of(others, image), expected) > 1e-3


def test_weights_are_not_degenerate():
    network, = build_networks(['m0'])
    for name, parameter in network.model.named_parameters():
        if name.endswith(('norm.weight', 'attention_biases')):
            assert parameter.abs().max() > 0 and parameter.std() > 0, name
    for name, buffer in network.model.named_buffers():
        if name.endswith('running_var'):
            assert (buffer > 0).all() and buffer.std() > 0, name
    maps = outputs_of(network, torch.randn(1, 3, 224, 224))
    assert all(0.1 < x.std() < 10 for x in maps)


def test_channels_without_variance_are_not_amplified():
    model = nn.ModuleDict({'backbone': nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))})
    with torch.no_grad():
        model['backbone'][0].weight[0] = 0
    randomize(model, 0)
    norm = model['backbone'][1]
    assert norm.running_var[0] >= 0.09 * norm.running_var.mean()
    assert not norm.training and norm.momentum == 0.1


def test_the_seed_sets_the_weights(small_statistics):
    first, again, other = (build_networks(['m0'], seed=seed)[0].model.state_dict()
                           for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first['backbone.stem.0.conv.weight'],
                           other['backbone.stem.0.conv.weight'])


def test_necks_start_at_stride_8(small_statistics):
    networks = build_networks(['torchvision://resnet50', 'torchvision://mobilenet_v3_large'],
                              with_neck=True)
    for network in networks:
        maps = outputs_of(network, torch.zeros(1, 3, 128, 128))
        assert [x.shape[1:] for x in maps] == [(256, side, side) for side in (16, 8, 4, 2, 1)]


def test_parts_of_configs(repository, small_statistics):
    configs = repository / 'configs'
    one_stage = str(configs / 'retinanet_evit_m0_coco.py')
    two_stages = str(configs / 'mask_rcnn_evit_m0_coco.py')

    def parts(*arguments, **options):
        return [list(network.model) for network in build_networks(list(arguments), **options)]

    assert parts(one_stage) == [['backbone', 'neck', 'bbox_head']]
    assert parts(one_stage, two_stages, until='neck') == [['backbone', 'neck']] * 2
    assert parts(one_stage, until='backbone',
                 variants=[('windows of 8', {'model.backbone.window_sizes': 8})]) \
        == [['backbone']] * 2


def test_peers_that_cant_be_built_have_the_reason(monkeypatch, small_statistics):
    monkeypatch.setitem(sys.modules, 'timm', None)
    networks = build_networks(['m0'], peers=default_peers(['m0']))
    assert [network.name for network in networks] == [
        'm0', 'timm://efficientvit_m0', 'torchvision://resnet50',
        'torchvision://mobilenet_v3_large']
    assert networks[1].model is None and 'needs timm' in networks[1].failure
    with pytest.raises(UserError, match='needs timm'):  # named explicitly
        build_networks(['m0', 'timm://efficientvit_m0'])


def test_mistakes_are_reported(repository, small_statistics):
    config = str(repository / 'configs' / 'upernet_evit_m0_ade20k.py')
    two_stages = str(repository / 'configs' / 'mask_rcnn_evit_m0_coco.py')
    for match, subjects, options in [
        ('needs a single model', ['m0', 'm1'], dict(variants=[('x', {})])),
        ('--variant can\'t change', ['torchvision://resnet50'], dict(variants=[('x', {'a': 1})])),
        ('pass one of them', ['m0'], dict(with_neck=True, until='neck')),
        ('--with-neck is for backbones', [config], dict(with_neck=True)),
        ('--with-head is for backbones', [config], dict(with_head=True)),
        ('pass one of them', ['m0'], dict(with_head=True, until='neck')),
        ('is a backbone', ['m0'], dict(until='neck')),
        ('has only backbone, decode_head', [config], dict(until='neck')),
        ('second stage', [two_stages], {}),
        ('KEY=VALUE pairs', ['timm://efficientvit_m0?448'], {}),
    ]:
        with pytest.raises(UserError, match=match):
            build_networks(subjects, **options)


def test_the_detector_is_that_of_the_config(repository, small_statistics):
    config = build_networks([str(repository / 'configs' / 'retinanet_evit_m0_coco.py')])[0].model
    composed = build_networks(['m0'], with_head=True)[0].model
    assert list(composed) == list(config) == ['backbone', 'neck', 'bbox_head']
    for part in ('neck', 'bbox_head'):
        assert ([tensor.shape for tensor in composed[part].state_dict().values()]
                == [tensor.shape for tensor in config[part].state_dict().values()])
    scores, boxes = outputs_of(build_networks(['m0'], with_head=True)[0],
                               torch.randn(1, 3, 128, 192))
    assert [tuple(level.shape[1:]) for level in scores] == [
        (720, 16, 24), (720, 8, 12), (720, 4, 6), (720, 2, 3), (720, 1, 2)]
    assert [level.shape[1] for level in boxes] == [36] * 5
