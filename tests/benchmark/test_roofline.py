"""The convolutions that set the floor, and their rate."""

import pytest
import torch
from torch import nn

from evit_mm.benchmark.roofline import convolution_steps, heaviest_convolutions
from evit_mm.benchmark.timing import run_steps


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_heaviest_dense_convolutions(context):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # depthwise
        nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1),
        nn.ConvTranspose2d(4, 4, 2, stride=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 64, 1, stride=2),
        nn.Conv2d(64, 5, 3, padding=1))
    with context():
        heaviest = heaviest_convolutions(
            [network], lambda: network(torch.zeros(2, 3, 16, 12)), each=2)
    assert not any(module._forward_hooks for module in network)
    pixels = 2 * 8 * 6
    assert [(conv.weight, conv.macs) for conv in heaviest] == [
        ((64, 4, 1, 1), 256 * pixels), ((16, 8, 1, 1), 128 * pixels),
        ((5, 64, 3, 3), 2880 * pixels), ((8, 3, 3, 3), 216 * pixels)]
    assert heaviest[3].image == (2, 3, 16, 12) and heaviest[3].stride == (2, 2)


@pytest.mark.parametrize('layer', [nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2),
                                   nn.Conv2d(8, 8, 3, dilation=2)])
def test_other_convolutions_set_no_floor(layer):
    assert heaviest_convolutions([layer], lambda: layer(torch.zeros(1, 8, 9, 9))) == []


def test_equal_convolutions_count_once():
    network = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3)))
    assert len(heaviest_convolutions([network], lambda: network(torch.zeros(1, 4, 5, 5)))) == 1


def test_the_rate_is_multiply_adds_over_time():
    layer = nn.Conv2d(4, 6, 3, stride=2)
    conv, = heaviest_convolutions([layer], lambda: layer(torch.zeros(1, 4, 9, 9)))
    steps, rate = convolution_steps(conv, torch.bfloat16, torch.device('cpu'))
    output = run_steps(steps, None)
    assert output.shape == (1, 6, 4, 4) and output.dtype == torch.bfloat16
    assert conv.macs == 16 * 6 * 36
    assert rate(2.0) == conv.macs * 500  # in 2 ms
