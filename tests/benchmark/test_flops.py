"""Multiply-adds and parameters against numbers computed by hand."""

import pytest
import torch
from torch import nn

from evit_mm.benchmark.flops import count_macs, count_parameters


def test_steps_are_counted_separately():
    steps = {'one': nn.Conv2d(3, 8, 3, padding=1), 'two': nn.Conv2d(8, 4, 1),
             'three': lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2)}
    with torch.inference_mode():
        macs = count_macs(steps, torch.zeros(2, 3, 10, 12))
    assert macs == {'one': 2 * 120 * 216, 'two': 2 * 120 * 32, 'three': 2 * 120 * 16}


@pytest.mark.parametrize(('layer', 'per_pixel'), [
    (nn.Conv2d(8, 16, 3, padding=1), 8 * 16 * 9),
    (nn.Conv2d(8, 8, 3, padding=1, groups=8), 8 * 9),
    (nn.Conv2d(8, 16, 3, padding=1, groups=2), 8 * 16 * 9 // 2),
    (nn.ConvTranspose2d(8, 4, 2, stride=2), 8 * 4 * 4),
])
def test_backward_costs_two_forwards(layer, per_pixel):
    """One for the gradient of the input, one for that of the weight, also if depthwise."""
    image = torch.zeros(2, 8, 5, 6)
    steps = {'forward': layer, 'backward': lambda y: y.sum().backward()}
    forward = 60 * per_pixel
    assert count_macs(steps, image) == {'forward': forward, 'backward': forward}
    assert count_macs(steps, image.requires_grad_()) == {'forward': forward,
                                                         'backward': 2 * forward}


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 4)
    assert count_parameters([layer, nn.Sequential(layer, nn.Linear(4, 1))]) == 16 + 5
