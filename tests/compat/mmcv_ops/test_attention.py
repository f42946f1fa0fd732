"""Multi-scale deformable attention as mmcv calls it where CUDA is available."""

import importlib
import itertools

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
attention = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
function = attention.MultiScaleDeformableAttnFunction
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')
if COMPILED and not torch.cuda.is_available():
    pytest.skip('the compiled operator needs CUDA', allow_module_level=True)


def attention_case(dtype=torch.float64, device='cpu'):
    """Return the arguments for levels of 3 x 4 and 2 x 1 pixels, some locations outside."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[3, 4], [2, 1]], device=device)
    starts = torch.tensor([0, 12], device=device)
    value = torch.randn(2, 14, 2, 4, generator=generator, dtype=torch.float64)
    locations = 1.4 * torch.rand(2, 3, 2, 2, 5, 2, generator=generator, dtype=torch.float64) - .2
    weights = torch.rand(2, 3, 2, 2, 5, generator=generator, dtype=torch.float64)
    tensors = [t.to(device, dtype) for t in (value, locations, weights)]
    return tensors[0], shapes, starts, tensors[1], tensors[2], 64


def slow_attention(value, shapes, starts, locations, weights, _):
    batch, _, heads, depth = value.shape
    output = torch.zeros(batch, locations.shape[1], heads, depth, dtype=torch.float64)
    for index in itertools.product(*map(range, weights.shape)):
        b, q, head, level, _ = index
        height, width = shapes[level].tolist()
        x = float(locations[index][0]) * width - .5
        y = float(locations[index][1]) * height - .5
        for row, column in itertools.product((int(y // 1), int(y // 1) + 1),
                                             (int(x // 1), int(x // 1) + 1)):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[index]
                key = int(starts[level]) + row * width + column
                output[b, q, head] += share * value[b, key, head]
    return output.flatten(2)


def test_attention_by_hand(device):
    # One level of 1 x 2 pixels with the values 2 and 6. In the middle is their mean, at 0.25 the
    # first alone; the weights are 1/2 and 3: 0.5 * 4 + 3 * 2 = 8.
    output = function.apply(
        torch.tensor([2., 6.], device=device).view(1, 2, 1, 1),
        torch.tensor([[1, 2]], device=device), torch.tensor([0], device=device),
        torch.tensor([[.5, .5], [.25, .5]], device=device).view(1, 1, 1, 1, 2, 2),
        torch.tensor([.5, 3.], device=device).view(1, 1, 1, 1, 2), 64)
    assert output.tolist() == [[[pytest.approx(8.)]]]


def test_attention_against_a_slow_one(device):
    case = attention_case(device=device)
    expected = slow_attention(*attention_case())
    assert torch.allclose(function.apply(*case).cpu(), expected, atol=1e-12)


@stand_in_only
def test_levels_in_another_order(device):
    value, shapes, starts, locations, weights, step = attention_case(device=device)
    swapped = torch.cat((value[:, 12:], value[:, :12]), dim=1)
    starts = torch.tensor([2, 0], device=device)
    assert torch.equal(function.apply(swapped, shapes, starts, locations, weights, step),
                       function.apply(*attention_case(device=device)))


def test_attention_gradient(device):
    value, shapes, starts, locations, weights, step = attention_case(device=device)
    assert torch.autograd.gradcheck(
        lambda v, at, w: function.apply(v, shapes, starts, at, w, step),
        [t.requires_grad_() for t in (value, locations, weights)], nondet_tol=1e-10,
        fast_mode=True)


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attention_in_half_precision(device, dtype):
    value, shapes, starts, locations, weights, step = attention_case(dtype, device)
    # mmcv rounds locations and weights to the dtype of the value, as autocast leaves them float32.
    value.requires_grad_()
    locations = locations.float().requires_grad_()
    output = function.apply(value, shapes, starts, locations, weights, step)
    exact = [t.detach().float().requires_grad_() for t in (value, locations.to(dtype), weights)]
    expected = function.apply(exact[0], shapes, starts, exact[1], exact[2], step)
    assert output.dtype == dtype
    assert torch.equal(output, expected.to(dtype))
    output.float().sum().backward()
    expected.sum().backward()
    eps = torch.finfo(dtype).eps
    assert torch.allclose(value.grad.float(), exact[0].grad, rtol=eps, atol=1e-6)
    assert torch.allclose(locations.grad, exact[1].grad, rtol=eps, atol=1e-5)


@stand_in_only
@pytest.mark.parametrize(('batch', 'queries'), [(0, 3), (2, 0)])
def test_attention_of_nothing(device, batch, queries):
    value, shapes, starts, locations, weights, step = attention_case(device=device)
    value = value[:batch].requires_grad_()
    output = function.apply(value, shapes, starts, locations[:batch, :queries],
                            weights[:batch, :queries], step)
    assert output.shape == (batch, queries, 8)
    output.sum().backward()
    assert value.grad is not None and value.grad.abs().sum() == 0


@stand_in_only
def test_the_module_takes_the_operator_where_cuda_is_available(monkeypatch, device):
    layer = attention.MultiScaleDeformableAttention(
        embed_dims=16, num_heads=4, num_levels=2, num_points=3, dropout=0.0).to(device)
    torch.nn.init.normal_(layer.attention_weights.weight)
    x = torch.randn(14, 2, 16, generator=torch.Generator().manual_seed(1)).to(device)
    points = torch.rand(2, 14, 2, 2, generator=torch.Generator().manual_seed(2)).to(device)
    calls = []

    def apply(*args):
        calls.append(args)
        return function.apply(*args)

    class Recorded:
        pass

    Recorded.apply = staticmethod(apply)
    arguments = dict(reference_points=points,
                     spatial_shapes=torch.tensor([[3, 4], [2, 1]], device=device),
                     level_start_index=torch.tensor([0, 12], device=device))
    monkeypatch.setattr(attention, 'MultiScaleDeformableAttnFunction', Recorded)
    with monkeypatch.context() as without_cuda:
        without_cuda.setattr(attention, 'IS_CUDA_AVAILABLE', False)
        plain = layer(x, **arguments)
    assert not calls

    class OnDevice(torch.Tensor):
        @property
        def is_cuda(self):
            return True

    if device == 'cuda':
        assert torch.allclose(layer(x, **arguments), plain, atol=1e-6)
        assert calls
        return
    monkeypatch.setattr(attention, 'IS_CUDA_AVAILABLE', True)
    monkeypatch.setattr(layer.value_proj, 'forward', lambda value: torch.nn.functional.linear(
        value, layer.value_proj.weight, layer.value_proj.bias).as_subclass(OnDevice))
    output = layer(x, **arguments)
    assert calls
    assert torch.allclose(output.as_subclass(torch.Tensor), plain, atol=1e-6)
