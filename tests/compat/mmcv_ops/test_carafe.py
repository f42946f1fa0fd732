"""CARAFE upsampling."""

import importlib
import itertools

import pytest
import torch
from mmengine.registry import MODELS

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')
if COMPILED and not torch.cuda.is_available():
    pytest.skip('the compiled operator needs CUDA', allow_module_level=True)


def case(kernel, groups, scale, dtype=torch.float64, device='cpu'):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    masks = torch.rand(2, groups * kernel ** 2, 3 * scale, 5 * scale, generator=generator,
                       dtype=torch.float64)
    return features.to(device, dtype), masks.to(device, dtype)


def slow_carafe(features, masks, kernel, groups, scale):
    batch, channels, height, width = features.shape
    output = torch.zeros(batch, channels, height * scale, width * scale, dtype=torch.float64)
    for n, c, y, x in itertools.product(*map(range, output.shape)):
        for i, j in itertools.product(range(kernel), range(kernel)):
            row, column = y // scale + i - kernel // 2, x // scale + j - kernel // 2
            if 0 <= row < height and 0 <= column < width:
                place = (c // (channels // groups) * kernel + i) * kernel + j
                output[n, c, y, x] += features[n, c, row, column] * masks[n, place, y, x]
    return output


def test_carafe_by_hand(device):
    # One row of 1, 2, 4, upsampled to twice the size; the kernel of 3 x 3 takes the left neighbor
    # twice and the pixel itself once.
    features = torch.tensor([[[[1., 2., 4.]]]], device=device)
    masks = torch.zeros(1, 9, 2, 6, device=device)
    masks[:, 3], masks[:, 4] = 2., 1.
    output = mmcv_functions.carafe(features, masks, 3, 1, 2)
    assert output.tolist() == [[[[1., 1., 4., 4., 8., 8.]] * 2]]


@pytest.mark.parametrize('name', ['carafe', 'carafe_naive'])
@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(3, 1, 2), (5, 2, 1), (1, 4, 3)])
def test_carafe_against_a_slow_one(device, name, kernel, groups, scale):
    tensors = case(kernel, groups, scale)
    output = getattr(mmcv_functions, name)(*(t.to(device) for t in tensors), kernel, groups, scale)
    assert torch.allclose(output.cpu(), slow_carafe(*tensors, kernel, groups, scale), atol=1e-12)


@pytest.mark.parametrize(('kernel', 'groups', 'scale'), [(3, 2, 2), (5, 1, 1)])
def test_carafe_gradient(device, kernel, groups, scale):
    tensors = [t.requires_grad_() for t in case(kernel, groups, scale, device=device)]
    assert torch.autograd.gradcheck(
        lambda x, m: mmcv_functions.carafe(x, m, kernel, groups, scale), tensors,
        nondet_tol=1e-10, fast_mode=True)


@stand_in_only
def test_the_naive_gradient_is_the_same(device):
    # On a CPU mmcv's own function refuses to call this operator.
    features, masks = case(3, 2, 2, device=device)
    seed = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(1),
                       dtype=torch.float64).to(device)
    grads = [torch.zeros_like(features), torch.zeros_like(masks)]
    importlib.import_module('mmcv._ext').carafe_naive_backward(
        seed, features, masks, *grads, kernel_size=3, group_size=2, scale_factor=2)
    tensors = [t.requires_grad_() for t in (features, masks)]
    expected = torch.autograd.grad(mmcv_functions.carafe(*tensors, 3, 2, 2), tensors, seed)
    assert all(torch.allclose(*pair) for pair in zip(grads, expected, strict=True))
    assert all(grad.abs().max() > .1 for grad in grads)


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_carafe_in_half_precision(device, dtype):
    features, masks = case(5, 1, 2, dtype, device)
    output = mmcv_functions.carafe(features.requires_grad_(), masks, 5, 1, 2)
    expected = mmcv_functions.carafe(features.detach().float(), masks.float(), 5, 1, 2)
    assert torch.equal(output, expected.to(dtype))  # computed in float32, rounded once
    output.float().sum().backward()
    assert features.grad.dtype == dtype


def test_the_registered_module_trains(device):
    layer = MODELS.build(dict(type='carafe', channels=4, scale_factor=2)).to(device)
    x = torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(1)).to(device)
    output = layer(x)
    assert output.shape == (1, 4, 10, 6)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())
    # The kernels are normalized: inside, a constant map remains constant.
    constant = layer(torch.ones(1, 4, 9, 9, device=device))[:, :, 4:-4, 4:-4]
    assert torch.allclose(constant, torch.ones_like(constant), atol=1e-5)


@stand_in_only
def test_carafe_of_nothing(device):
    features, masks = case(3, 1, 2, device=device)
    output = mmcv_functions.carafe(features[:0].requires_grad_(), masks[:0], 3, 1, 2)
    assert output.shape == (0, 4, 6, 10)
    output.sum().backward()
