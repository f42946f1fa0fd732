"""The neck: exact to the published detectors, and clear about what does not fit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from evit_mm.errors import ConfigError
from evit_mm.models import EfficientViTFPN


def maps(*sizes, channels=(8, 16, 24)):
    return [torch.randn(2, c, h, w) for c, (h, w) in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize('detector', ['retinanet', 'mask_rcnn'])
def test_recorded_outputs_of_the_published_detectors(detector, golden, repository, tmp_path):
    init_default_scope('mmdet')
    config = Config.fromfile(repository / 'configs' / f'{detector}_evit_m4_coco.py')
    model = MODELS.build(config.model).eval()
    state = {key: torch.from_numpy(np.asarray(value))
             for key, value in golden.official_state(f'{detector}_m4').items()}
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'published.pth')
    load_checkpoint(model, str(tmp_path / 'published.pth'), strict=True)
    recorded = np.load(golden.HERE / f'{detector}_m4.npz')
    for size in ('1x448x448', '1x512x640'):
        with torch.no_grad():
            image = golden.pattern(*map(int, size.split('x')))
            levels = model.extract_feat(torch.from_numpy(image))
        assert len(levels) == 5
        for i, level in enumerate(levels):
            some = torch.from_numpy(recorded[f'{size}_level{i}'])
            mean = torch.from_numpy(recorded[f'{size}_level{i}_mean'])
            step = level.shape[1] // some.shape[1]
            assert (level[:, ::step] - some).abs().max() < 1e-5 * some.abs().max()
            assert (level.mean((2, 3)) - mean).abs().max() < 1e-5 * mean.abs().max()


@pytest.mark.parametrize('finer,outs', [(0, 3), (0, 5), (1, 4), (1, 5), (2, 5), (3, 8)])
def test_levels_and_strides(finer, outs):
    neck = EfficientViTFPN((8, 16, 24), 12, num_outs=outs, num_extra_trans_convs=finer)
    levels = neck(maps((9, 11), (5, 6), (3, 3)))
    assert neck.out_strides == tuple(16 // 2 ** finer * 2 ** i for i in range(outs))
    sizes = [(9 * 2 ** (finer - i), 11 * 2 ** (finer - i)) for i in range(finer + 1)]
    sizes += [(5, 6), (3, 3)]
    while len(sizes) < outs:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    assert [tuple(level.shape) for level in levels] == [(2, 12, *size) for size in sizes]


def test_top_down_sum_by_hand():
    neck = EfficientViTFPN((1, 1), 1, num_outs=3)
    with torch.no_grad():
        for conv in neck.lateral_convs:
            conv.conv.weight.fill_(2.0)
            conv.conv.bias.zero_()
        for conv in neck.fpn_convs:
            conv.conv.weight.zero_()[0, 0, 1, 1] = 1.0
            conv.conv.bias.fill_(0.5)
        fine, coarse = torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[[[10.0, 20.0]]]])
        levels = neck([fine, coarse])
    # Nearest: columns 0 and 1 of three take the first of two, column 2 the second.
    assert levels[0].flatten().tolist() == [20.5, 22.5, 44.5, 26.5, 28.5, 50.5]
    assert levels[1].flatten().tolist() == [20.5, 40.5]
    assert levels[2].flatten().tolist() == [20.5]  # every second column


def test_finer_levels_by_hand():
    neck = EfficientViTFPN((1,), 1, num_extra_trans_convs=2)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.zero_()
        neck.lateral_convs[0].conv.weight.fill_(1.0)
        for i, up in enumerate(neck.extra_trans_convs):
            up.conv.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (i + 1))
        for i, conv in enumerate(neck.extra_fpn_convs):
            conv.conv.weight[0, 0, 1, 1] = 10.0 ** i
        fine, middle, lateral = neck([torch.tensor([[[[1.0, 5.0]]]])])
        first = F.conv_transpose2d(torch.tensor([[[[1.0, 5.0]]]]),
                                   torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), stride=2)
    assert first.flatten().tolist() == [1, 2, 5, 10, 3, 4, 15, 20]
    assert middle.flatten().tolist() == [10, 20, 50, 100, 30, 40, 150, 200]
    assert fine[0, 0, 0].tolist() == [2, 4, 4, 8, 10, 20, 20, 40]
    assert lateral.flatten().tolist() == [0, 0]  # its own 3x3 is zero


def test_every_parameter_gets_a_gradient():
    neck = EfficientViTFPN((8, 16, 24), 12, num_outs=6, num_extra_trans_convs=2)
    neck.init_weights()
    sum(x.square().mean() for x in neck(maps((8, 8), (4, 4), (2, 2)))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())


@pytest.mark.parametrize('options,fragments', [
    (dict(in_channels=()), ['empty']),
    (dict(in_channels=64), ['64', 'list']),
    (dict(in_channels=(8, 16), out_channels=0), ['out_channels=0']),
    (dict(in_channels=(8, 16), in_strides=()), ['in_strides=()']),
    (dict(in_channels=(8, 16), num_extra_trans_convs=-1), ['-1']),
    (dict(in_channels=(8, 16), num_extra_trans_convs=5), ['5', '16']),
    (dict(in_channels=(8, 16), num_outs=1), ['num_outs=1', '2 input maps']),
    (dict(in_channels=(8, 16), in_strides=(8, 32)), ['(8, 32)', 'double']),
])
def test_bad_arguments(options, fragments):
    with pytest.raises(ConfigError) as error:
        EfficientViTFPN(**options)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def test_wrong_input_names_both_lists():
    neck = EfficientViTFPN((8, 16, 24))
    with pytest.raises(ConfigError, match=r'\[8, 16, 24\].*\[8, 16, 32\]'):
        neck(maps((8, 8), (4, 4), (2, 2), channels=(8, 16, 32)))
