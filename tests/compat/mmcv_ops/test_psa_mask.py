"""PSANet's attention masks."""

import importlib
import itertools

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')


def slow_psa_mask(values, kind, mask_size):
    batch, _, height, width = values.shape
    output = torch.zeros(batch, height * width, height, width, dtype=values.dtype)
    centers = [(size - 1) // 2 for size in mask_size]
    for n, h, w, i, j in itertools.product(range(batch), range(height), range(width),
                                           *map(range, mask_size)):
        y, x = h + i - centers[0], w + j - centers[1]
        if 0 <= y < height and 0 <= x < width:
            value = values[n, i * mask_size[1] + j, h, w]
            if kind == 'collect':
                output[n, y * width + x, h, w] = value
            else:
                output[n, h * width + w, y, x] = value
    return output


@pytest.mark.parametrize('kind', ['collect', 'distribute'])
@pytest.mark.parametrize('mask_size', [(3, 5), (7, 7), (2, 4), (1, 1)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_psa_mask_against_a_slow_one(device, kind, mask_size, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, mask_size[0] * mask_size[1], 4, 3, generator=generator).to(dtype)
    module = mmcv_functions.PSAMask(kind, mask_size)
    copy = values.to(device).requires_grad_()
    output = module(copy)
    assert torch.equal(output.cpu(), slow_psa_mask(values, kind, mask_size))
    # It moves values, so that the gradient of half its square is what of the input remains.
    (output.square() / 2).sum().backward()
    used = slow_psa_mask(torch.arange(1., values[0].numel() + 1).view_as(values[:1]), kind,
                         mask_size).long()
    remains = torch.zeros(values[0].numel() + 1, dtype=torch.bool)
    remains[used.flatten()] = True
    expected = values * remains[1:].view_as(values[0])
    assert torch.equal(copy.grad.cpu(), expected)


@pytest.mark.skipif(COMPILED, reason='about the stand-in')
def test_psa_mask_in_half_precision_and_of_nothing(device):
    values = torch.randn(2, 9, 4, 3, generator=torch.Generator().manual_seed(0)).to(device).half()
    module = mmcv_functions.PSAMask('collect', (3, 3))
    assert torch.equal(module(values), module(values.float()).half())
    assert module(values[:0]).shape == (0, 12, 4, 3)
