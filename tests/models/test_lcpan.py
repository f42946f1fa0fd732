"""The light neck: its levels, its sums by hand, and what does not fit."""

import re

import pytest
import torch
from random_models import randomize, relative_error
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.deployment import deploy
from evit_mm.errors import ConfigError
from evit_mm.models import LCPAN, EfficientViT

CHANNELS = (6, 8, 16, 24)


def maps(*sizes, channels=CHANNELS):
    return [torch.randn(2, c, h, w) for c, (h, w) in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize('merge', ['concat', 'sum'])
@pytest.mark.parametrize('outs', [None, 4, 5, 6])
def test_levels_and_strides(outs, merge):
    neck = LCPAN(CHANNELS, 12, num_outs=outs, merge=merge)
    levels = neck(maps((13, 19), (7, 10), (4, 5), (2, 3)))
    sizes = [(13, 19), (7, 10), (4, 5), (2, 3), (1, 2), (1, 1)][:outs or 4]
    assert [tuple(level.shape) for level in levels] == [(2, 12, *size) for size in sizes]
    assert neck.out_strides == tuple(8 * 2 ** level for level in range(outs or 4))


@pytest.mark.parametrize('merge', ['concat', 'sum'])
@pytest.mark.parametrize('height,width', [(64, 64), (97, 130), (1, 1), (416, 33)])
def test_any_image_behind_the_backbone(height, width, merge):
    backbone = EfficientViT('m0', stem_strides=(8,)).eval()
    neck = LCPAN(backbone.out_channels, 16, num_outs=5, merge=merge).eval()
    with torch.no_grad():
        levels = neck(backbone(torch.randn(1, 3, height, width)))
    assert [level.shape[2:] for level in levels] == [
        (-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]


def identity_neck(**arguments):
    """Return a neck of one channel whose convolutions copy, or add, what they read."""
    neck = LCPAN((1, 1), 1, kernel_size=3, act_cfg=dict(type='ReLU'), **arguments).eval()
    for name, parameter in neck.named_parameters():
        if name.endswith('depthwise.conv.weight'):
            parameter.data.zero_()[..., 1, 1] = 1
        elif name.endswith('conv.weight'):
            parameter.data.fill_(1)
    return neck


def test_both_passes_by_hand():
    fine, coarse = torch.arange(9.).view(1, 1, 3, 3), torch.tensor([[[[10., 20.], [30., 40.]]]])
    with torch.no_grad():
        levels = identity_neck(num_outs=3)([fine, coarse])
    # Rows and columns 0 and 1 of three take the first of two, row and column 2 the second.
    assert levels[0].flatten().tolist() == pytest.approx(
        [10, 11, 22, 13, 14, 25, 36, 37, 48], rel=1e-3)
    # Every second row and column of that, and the coarse map.
    assert levels[1].flatten().tolist() == pytest.approx([20, 42, 66, 88], rel=1e-3)
    # The first place of the coarse map, and of the level before.
    assert levels[2].flatten().tolist() == pytest.approx([10 + 20], rel=1e-3)


def test_merging_by_sums_by_hand():
    fine, coarse = torch.arange(9.).view(1, 1, 3, 3), torch.tensor([[[[10., 20.], [30., 40.]]]])
    with torch.no_grad():
        levels = identity_neck(num_outs=3, merge='sum')([fine, coarse])
    # A convolution that copies doubles each sum. The first are those of `test_both_passes_by_hand`.
    assert levels[0].flatten().tolist() == pytest.approx(
        [20, 22, 44, 26, 28, 50, 72, 74, 96], rel=1e-3)
    assert levels[1].flatten().tolist() == pytest.approx(
        [2 * (10 + 20), 2 * (20 + 44), 2 * (30 + 72), 2 * (40 + 96)], rel=1e-3)
    assert levels[2].flatten().tolist() == pytest.approx([10 + 60], rel=1e-3)


@pytest.mark.parametrize('merge', ['concat', 'sum'])
@pytest.mark.parametrize('part', ['lateral_convs', 'top_down_convs', 'halving_convs',
                                  'bottom_up_convs', 'extra_lateral_convs', 'extra_convs'])
def test_every_convolution_learns(part, merge):
    neck = LCPAN(CHANNELS, 12, num_outs=5, merge=merge).train()
    sum(level.square().sum() for level in neck(maps((16, 16), (8, 8), (4, 4), (2, 2)))).backward()
    parameters = list(getattr(neck, part).parameters())
    assert parameters and all(parameter.grad.abs().sum() > 0 for parameter in parameters)


@pytest.mark.parametrize('merge', ['concat', 'sum'])
def test_deployed_neck_computes_the_same(merge):
    neck = randomize(LCPAN(CHANNELS, 12, num_outs=5, merge=merge)).eval()
    inputs = maps((13, 19), (7, 10), (4, 5), (2, 3))
    with torch.no_grad():
        expected = neck(inputs)
        deployed = deploy(neck)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in deployed.modules())
        assert relative_error(deployed(inputs), expected) < 1e-5


@pytest.mark.parametrize('merge', ['concat', 'sum'])
def test_cost_by_hand(merge):
    """Pointwise and depthwise convolutions, counted level by level."""
    width, sizes = 12, (16, 8, 4)
    merged = 2 * width if merge == 'concat' else width
    neck = LCPAN((6, 8, 10), width, num_outs=4, merge=merge).eval()

    def separable(channels, side):
        return side ** 2 * channels * (5 * 5 + width)

    expected = sum(side ** 2 * channels * width
                   for side, channels in zip(sizes, (6, 8, 10), strict=True))
    expected += separable(merged, 16) + separable(merged, 8)
    expected += sum(separable(width, side) + separable(merged, side) for side in (8, 4))
    expected += 2 * separable(width, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        neck([torch.randn(1, channels, side, side)
              for side, channels in zip(sizes, (6, 8, 10), strict=True)])
    assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize('arguments,message', [
    (dict(in_channels=64), 'in_channels=64 must be a list'),
    (dict(in_channels=[]), r'in_channels=\[\] must be a list'),
    (dict(out_channels=0), 'out_channels=0 must be positive'),
    (dict(num_outs=2), 'num_outs=2 is less than the 4 input maps'),
    (dict(kernel_size=4), 'kernel_size=4 must be odd'),
    (dict(merge='add'), "merge='add' must be 'concat' or 'sum'"),
    (dict(in_strides=[8, 16]), r'in_strides=\(8, 16\) must double .* 4 input maps'),
    (dict(in_strides=[4, 16, 32, 64]), 'in_strides=.* must double'),
])
def test_what_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=f'LCPAN: .*{message}'):
        LCPAN(**dict(in_channels=CHANNELS) | arguments)


@pytest.mark.parametrize('merge', ['concat', 'sum'])
@pytest.mark.parametrize('coarse', [(1, 1), (3, 4), (4, 3)])
def test_a_map_that_is_not_half_of_the_finer_one(merge, coarse):
    neck = LCPAN((6, 8), 12, merge=merge)
    with pytest.raises(ConfigError, match=rf'{re.escape(str(coarse))} rows and columns must be '
                       r'half of the finer one, rounded up: \(3, 3\)'):
        neck(maps((5, 6), coarse, channels=(6, 8)))


def test_other_channels_than_it_was_built_for():
    with pytest.raises(ConfigError, match=r'LCPAN is built for in_channels=\[6, 8, 16, 24\], but '
                       r'the input maps have channels \[6, 8, 16, 32\]'):
        LCPAN(CHANNELS)(maps((8, 8), (4, 4), (2, 2), (1, 1), channels=(6, 8, 16, 32)))
