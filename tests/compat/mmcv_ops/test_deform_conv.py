"""Deformable convolutions through mmcv's own modules."""

import importlib
import itertools

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow_deform_conv(x, offset, weight, stride, padding, dilation, groups, offset_groups,
                     mask=None, bias=None):
    """Convolve at one place of the kernel and one channel at a time; numbers on a CPU."""
    batch, channels, height, width = x.shape
    outputs, _, kernel_h, kernel_w = weight.shape
    size = offset.shape[2:]
    places = kernel_h * kernel_w

    def sample(image, y, x):
        total = 0.0
        for row, column in itertools.product((int(y // 1), int(y // 1) + 1),
                                             (int(x // 1), int(x // 1) + 1)):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image[row, column])
        return total

    result = torch.zeros(batch, outputs, *size, dtype=torch.float64)
    for n, o, i, j in itertools.product(range(batch), range(outputs), *map(range, size)):
        total = 0.0 if bias is None else float(bias[o])
        group = o // (outputs // groups)
        for c, ky, kx in itertools.product(range(channels // groups), range(kernel_h),
                                           range(kernel_w)):
            channel = group * (channels // groups) + c
            place = channel // (channels // offset_groups) * places + ky * kernel_w + kx
            y = i * stride[0] - padding[0] + ky * dilation[0] + float(offset[n, 2 * place, i, j])
            x_ = (j * stride[1] - padding[1] + kx * dilation[1]
                  + float(offset[n, 2 * place + 1, i, j]))
            factor = 1.0 if mask is None else float(mask[n, place, i, j])
            total += float(weight[o, c, ky, kx]) * factor * sample(x[n, channel], y, x_)
        result[n, o, i, j] = total
    return result


def output_size(size, kernel, stride, padding, dilation):
    return [(s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, k, t, p, d in zip(size, kernel, stride, padding, dilation, strict=True)]


CASES = {  # kernel, stride, padding, dilation, groups, groups with offsets of their own
    'plain': ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    'oblong': ((2, 3), (2, 1), (0, 2), (1, 2), 1, 1),
    'groups': ((3, 1), (1, 2), (1, 0), (1, 1), 2, 1),
    'offset groups': ((1, 2), (1, 1), (0, 1), (1, 1), 1, 2),
    'both groups': ((2, 2), (1, 1), (1, 1), (1, 1), 2, 4),
}


def deform_case(kernel, stride, padding, dilation, groups, offset_groups, batch=2):
    size = output_size((5, 6), kernel, stride, padding, dilation)
    places = kernel[0] * kernel[1]
    # Offsets of up to a few pixels reach beyond the border, and never a whole pixel.
    offset = 1.5 * randn(batch, 2 * offset_groups * places, *size, seed=1)
    return (randn(batch, 4, 5, 6), torch.where((offset - offset.round()).abs() < .02, .3, offset),
            randn(6, 4 // groups, *kernel, seed=2),
            torch.rand(batch, offset_groups * places, *size,
                       generator=torch.Generator().manual_seed(3), dtype=torch.float64),
            randn(6, seed=4))


def test_deform_conv_by_hand(device):
    # A kernel of one place with the weight 10: each output is 10 times the input, half a pixel
    # below and a quarter to the right of its place.
    image = torch.tensor([[[[0., 4.], [8., 12.]]]], device=device)
    offset = torch.tensor([.5, .25], device=device)[None, :, None, None].expand(1, 2, 2, 2)
    weight = torch.full((1, 1, 1, 1), 10., device=device)
    output = mmcv_functions.deform_conv2d(image, offset.contiguous(), weight)
    # Between the four pixels: 0.5 * (0.75 * 0 + 0.25 * 4) + 0.5 * (0.75 * 8 + 0.25 * 12) = 5.
    # Beyond the right and the lower border is 0: 0.75 * (0.5 * 4 + 0.5 * 12) = 6,
    # 0.5 * (0.75 * 8 + 0.25 * 12) = 4.5 and 0.5 * 0.75 * 12 = 4.5.
    assert output.flatten().tolist() == pytest.approx([50., 60., 45., 45.])
    mask = torch.full((1, 1, 2, 2), .5, device=device)
    output = mmcv_functions.modulated_deform_conv2d(
        image, offset.contiguous(), mask, weight, torch.ones(1, device=device), 1, 0, 1, 1, 1)
    assert output.flatten().tolist() == pytest.approx([26., 31., 23.5, 23.5])


@pytest.mark.parametrize('case', CASES)
def test_deform_conv_without_offsets_is_a_convolution(device, case):
    x, offset, weight, mask, bias = (t.to(device) for t in deform_case(*CASES[case]))
    _, stride, padding, dilation, groups, offset_groups = CASES[case]
    expected = functional.conv2d(x, weight, None, stride, padding, dilation, groups)
    output = mmcv_functions.deform_conv2d(x, 0 * offset, weight, stride, padding, dilation, groups,
                                          offset_groups)
    assert torch.allclose(output, expected, atol=1e-12)
    output = mmcv_functions.modulated_deform_conv2d(
        x, 0 * offset, torch.ones_like(mask), weight, bias, stride, padding, dilation, groups,
        offset_groups)
    assert torch.allclose(output, expected + bias[:, None, None], atol=1e-12)


@pytest.mark.parametrize('case', CASES)
def test_deform_conv_against_a_slow_one(device, case):
    x, offset, weight, mask, bias = deform_case(*CASES[case])
    options = CASES[case][1:]
    there = [t.to(device) for t in (x, offset, weight, mask, bias)]
    output = mmcv_functions.deform_conv2d(there[0], there[1], there[2], *options)
    assert torch.allclose(output.cpu(), slow_deform_conv(x, offset, weight, *options), atol=1e-10)
    output = mmcv_functions.modulated_deform_conv2d(*(there[i] for i in (0, 1, 3, 2, 4)), *options)
    assert torch.allclose(output.cpu(), slow_deform_conv(x, offset, weight, *options, mask, bias),
                          atol=1e-10)


@pytest.mark.parametrize('case', CASES)
def test_deform_conv_gradient(device, case):
    tensors = [t.to(device).requires_grad_() for t in deform_case(*CASES[case], batch=1)]
    options = CASES[case][1:]
    check = {'nondet_tol': 1e-10, 'fast_mode': True}
    assert torch.autograd.gradcheck(
        lambda x, offset, weight: mmcv_functions.deform_conv2d(x, offset, weight, *options),
        tensors[:3], **check)
    assert torch.autograd.gradcheck(
        lambda x, offset, weight, mask, bias: mmcv_functions.modulated_deform_conv2d(
            x, offset, mask, weight, bias, *options), tensors, **check)


@pytest.mark.parametrize('needed', [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_deform_conv_gradient_of_some_inputs(device, needed):
    # mmcv asks for the gradients by input and offset, and for that by the weight, separately.
    tensors = [t.to(device) for t in deform_case(*CASES['both groups'], batch=2)[:3]]
    options = CASES['both groups'][1:]

    def gradient(chosen, times=1):
        for i, tensor in enumerate(tensors):
            tensor.requires_grad_(i in chosen)
        output = mmcv_functions.deform_conv2d(*tensors, *options)
        seed = randn(*output.shape, seed=7).to(device)
        for _ in range(times - 1):  # with another gradient, whose results must leave no trace
            torch.autograd.grad(output, [tensors[i] for i in chosen], seed + 1, retain_graph=True)
        return dict(zip(chosen, torch.autograd.grad(output, [tensors[i] for i in chosen], seed),
                        strict=True))

    whole = gradient((0, 1, 2))
    for i, grad in gradient(needed, times=2).items():
        assert torch.allclose(grad, whole[i], atol=1e-10) and grad.abs().max() > .1


def test_modulated_deform_conv_without_bias(device):
    x, offset, weight, mask, bias = (t.to(device) for t in deform_case(*CASES['plain']))
    output = mmcv_functions.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1)
    expected = mmcv_functions.modulated_deform_conv2d(x, offset, mask, weight, 0 * bias, 1, 1, 1, 1,
                                                      1)
    assert torch.equal(output, expected)


@pytest.mark.parametrize('name', ['DCN', 'DCNv2', 'SAC'])
def test_registered_convolutions(device, name):
    config = dict(type=name, use_deform=True) if name == 'SAC' else dict(type=name)
    layer = MODELS.build(dict(config, in_channels=4, out_channels=3, kernel_size=3, padding=1))
    layer = layer.double().to(device)
    for index, parameter in enumerate(layer.parameters()):
        nn.init.constant_(parameter, 0)
        parameter.data += .3 * randn(*parameter.shape, seed=index).to(device)
    x = randn(1, 4, 6, 5).to(device).requires_grad_()
    assert layer(x).shape == (1, 3, 6, 5)
    assert torch.autograd.gradcheck(layer, x, nondet_tol=1e-10, fast_mode=True)
    layer(x).square().sum().backward()
    grads = {key: parameter.grad for key, parameter in layer.named_parameters()
             if (name, key) != ('SAC', 'bias')}  # which mmcv does not add
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads.values()), grads


def test_an_input_smaller_than_the_kernel_is_padded(device):
    # mmcv pads input and offsets below and at the right, and crops the output.
    layer = mmcv_functions.DeformConv2d(2, 3, 5, padding=2).double().to(device)
    x = randn(1, 2, 3, 7).to(device)
    output = layer(x, torch.zeros(1, 50, 3, 7, dtype=torch.float64, device=device))
    assert output.shape == (1, 3, 3, 7)
    assert torch.allclose(output, functional.conv2d(x, layer.weight, padding=2), atol=1e-12)


@pytest.mark.skipif(COMPILED, reason='the compiled operators read such tensors wrongly')
def test_tensors_that_are_not_contiguous(device):
    x, offset, weight, mask, bias = (t.to(device) for t in deform_case(*CASES['plain']))
    expected = mmcv_functions.modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1, 1, 1, 1)
    scattered = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (x, offset, mask)]
    assert not scattered[0].is_contiguous()
    output = mmcv_functions.modulated_deform_conv2d(*scattered, weight, bias, 1, 1, 1, 1, 1)
    assert torch.allclose(output, expected)
    output = mmcv_functions.deform_conv2d(*scattered[:2], weight, 1, 1)
    assert torch.allclose(output, mmcv_functions.deform_conv2d(x, offset, weight, 1, 1))


def test_larger_offsets_are_read_one_after_the_other(device):
    # DyHead gives a convolution of a smaller level the offsets of a larger one.
    x, offset, weight, mask, bias = (t.to(device) for t in deform_case(*CASES['oblong'], batch=2))
    _, stride, padding, dilation, groups, offset_groups = CASES['oblong']
    options = (stride, padding, dilation, groups, offset_groups)
    larger = [torch.full((2, t.shape[1], t.shape[2] + 2, t.shape[3] + 1), 9., dtype=t.dtype,
                         device=device) for t in (offset, mask)]
    for large, small in zip(larger, (offset, mask), strict=True):
        large.view(2, -1)[:, :small[0].numel()] = small.flatten(1)
        large.requires_grad_()
        small.requires_grad_()
    output = mmcv_functions.modulated_deform_conv2d(x, *larger, weight, bias, *options)
    expected = mmcv_functions.modulated_deform_conv2d(x, offset, mask, weight, bias, *options)
    assert torch.equal(output, expected)
    seed = randn(*output.shape, seed=5).to(device)
    grads = torch.autograd.grad(output, larger, seed)
    expected_grads = torch.autograd.grad(expected, (offset, mask), seed)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        count = expected_grad[0].numel()
        assert torch.equal(grad.flatten(1)[:, :count], expected_grad.flatten(1))
        assert grad.flatten(1)[:, count:].abs().max() == 0
    if not COMPILED:
        with pytest.raises(ValueError, match='need the size of its output'):
            mmcv_functions.modulated_deform_conv2d(x, offset[:, :, 1:], mask, weight, bias,
                                                   *options)


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deform_conv_in_half_precision(device, dtype):
    rounded = [t.to(device, dtype).requires_grad_() for t in deform_case(*CASES['plain'])]
    exact = [t.detach().float().requires_grad_() for t in rounded]
    for indices, function in (((0, 1, 2), mmcv_functions.deform_conv2d),
                              ((0, 1, 3, 2, 4), mmcv_functions.modulated_deform_conv2d)):
        options = (1, 1, 1, 1, 1)
        output = function(*(rounded[i] for i in indices), *options)
        expected = function(*(exact[i] for i in indices), *options)
        assert output.dtype == dtype
        assert torch.equal(output, expected.to(dtype))  # computed in float32, rounded once
        seed = randn(*output.shape, seed=9).to(device, dtype)
        grads = torch.autograd.grad(output, [rounded[i] for i in indices], seed)
        exact_grads = torch.autograd.grad(expected, [exact[i] for i in indices], seed.float())
        for grad, exact_grad in zip(grads, exact_grads, strict=True):
            assert grad.dtype == dtype
            assert torch.allclose(grad.float(), exact_grad, rtol=2 * torch.finfo(dtype).eps,
                                  atol=1e-5)


@stand_in_only
@pytest.mark.parametrize('name', ['DCN', 'DCNv2'])
def test_deform_conv_under_autocast(device, name):
    layer = MODELS.build(dict(type=name, in_channels=4, out_channels=3, kernel_size=3, padding=1))
    layer = layer.to(device)
    x = randn(2, 4, 6, 5, dtype=torch.float32).to(device)
    expected = layer(x).detach()
    with torch.autocast(device, dtype=torch.bfloat16):
        output = layer(x)
        output.float().square().sum().backward()  # mmcv rounds to the offset's dtype
    assert output.dtype == torch.bfloat16
    assert torch.allclose(output.float(), expected, atol=.1 * float(expected.abs().max()))
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_offsets_of_another_shape_are_refused(device):
    x, weight = torch.ones(1, 1, 4, 4, device=device), torch.ones(1, 1, 3, 3, device=device)
    with pytest.raises(RuntimeError, match='(?i)offset'):
        mmcv_functions.deform_conv2d(x, torch.zeros(1, 16, 2, 2, device=device), weight)
