"""Samples along the borders of boxes."""

import importlib
import itertools
import math

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
if COMPILED and not torch.cuda.is_available():
    pytest.skip('the compiled operator needs CUDA', allow_module_level=True)


def test_border_align_by_hand(device):
    # Four maps of 3 x 4 pixels, of which the pixel (y, x) is 10 * y + x; the left one is negative.
    plane = 10 * torch.arange(3., device=device)[:, None] + torch.arange(4., device=device)
    image = torch.stack((plane, -plane, plane, plane))[None].requires_grad_()
    boxes = torch.tensor([[[1., 0., 3., 2.]]], device=device)
    output = mmcv_functions.border_align(image, boxes, 2)
    # Top: y = 0, x from 1 to 3; left: x = 1, y from 0 to 2; bottom: y = 2; right: x = 3.
    assert output.flatten().tolist() == [3., -1., 23., 23.]
    output.backward(torch.tensor([1., 2., 3., 4.], device=device).view_as(output))
    at = [(0, 0, 3, 1.), (1, 0, 1, 2.), (2, 2, 3, 3.), (3, 2, 3, 4.)]
    expected = torch.zeros_like(image[0])
    for border, y, x, grad in at:
        expected[border, y, x] = grad
    assert torch.equal(image.grad[0], expected)


def case(device='cpu', dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 8, 5, 6, generator=generator, dtype=torch.float64)
    corners = torch.rand(2, 7, 2, generator=generator, dtype=torch.float64) * 6 - 2
    boxes = torch.cat((corners, corners + 4 * torch.rand(
        2, 7, 2, generator=generator, dtype=torch.float64)), dim=2)
    return image.to(device, dtype), boxes.to(device, dtype)


def slow_border_align(image, boxes, pool_size):
    batch, channels, height, width = image.shape
    output = torch.zeros(batch, channels // 4, boxes.shape[1], 4, dtype=torch.float64)

    def value(plane, y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        rows = ((math.floor(y), 1 - y % 1), (min(math.floor(y) + 1, height - 1), y % 1))
        columns = ((math.floor(x), 1 - x % 1), (min(math.floor(x) + 1, width - 1), x % 1))
        return sum(a * b * float(plane[i, j]) for (i, a), (j, b) in itertools.product(rows,
                                                                                      columns))

    for b, c, k, border in itertools.product(*map(range, output.shape)):
        x1, y1, x2, y2 = boxes[b, k].tolist()
        plane = image[b, border * (channels // 4) + c]
        shares = [step / pool_size for step in range(pool_size + 1)]
        places = {0: [(y1, x1 + t * (x2 - x1)) for t in shares],
                  1: [(y1 + t * (y2 - y1), x1) for t in shares],
                  2: [(y2, x1 + t * (x2 - x1)) for t in shares],
                  3: [(y1 + t * (y2 - y1), x2) for t in shares]}[border]
        output[b, c, k, border] = max(value(plane, y, x) for y, x in places)
    return output


@pytest.mark.parametrize('pool_size', [1, 3])
def test_border_align_against_a_slow_one(device, pool_size):
    image, boxes = case()
    output = mmcv_functions.BorderAlign(pool_size)(image.to(device), boxes.to(device))
    assert torch.allclose(output.cpu(), slow_border_align(image, boxes, pool_size), atol=1e-12)


def test_border_align_gradient(device):
    image, boxes = case(device)
    assert torch.autograd.gradcheck(lambda x: mmcv_functions.border_align(x, boxes, 3),
                                    image.requires_grad_(), nondet_tol=1e-10, fast_mode=True)


@pytest.mark.skipif(COMPILED, reason='the compiled operator cannot be launched on nothing')
def test_border_align_in_half_precision_and_of_nothing(device):
    image, boxes = case(device, torch.float16)
    output = mmcv_functions.border_align(image.requires_grad_(), boxes, 3)
    expected = mmcv_functions.border_align(image.detach().float(), boxes.float(), 3)
    assert torch.equal(output, expected.half())
    output.sum().backward()
    assert image.grad.dtype == torch.float16
    assert mmcv_functions.border_align(image, boxes[:, :0], 3).shape == (2, 2, 0, 4)
