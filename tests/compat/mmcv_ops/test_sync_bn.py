"""Batch normalization in steps."""

import importlib

import pytest
import torch
from torch.nn import functional

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
function = importlib.import_module('mmcv.ops.sync_bn').SyncBatchNormFunction
if COMPILED and not torch.cuda.is_available():
    pytest.skip('the compiled operator needs CUDA', allow_module_level=True)


def case(dtype=torch.float32, device='cpu', batch=4):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(batch, 3, 5, 6, generator=generator) + 1
    parameters = [torch.randn(3, generator=generator), torch.randn(3, generator=generator)]
    return [t.to(device, dtype) for t in [x]] + [t.to(device) for t in parameters]


@pytest.mark.parametrize('mode', ['default', 'N'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_sync_bn_is_batch_norm_in_one_process(device, mode, dtype):
    tensors = [t.requires_grad_() for t in case(dtype, device)]
    running = [torch.full((3,), 2., device=device), torch.full((3,), 3., device=device)]
    reference = [t.detach().float().requires_grad_() for t in tensors]
    expected_running = [t.clone() for t in running]
    output = function.apply(tensors[0], *running, *tensors[1:], .2, 1e-5, None, 1, mode)
    expected = functional.batch_norm(reference[0], *expected_running, *reference[1:], True, .2,
                                     1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    assert output.dtype == dtype
    assert torch.allclose(output.float(), expected, atol=tolerance)
    for mine, theirs in zip(running, expected_running, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    output.backward(seed)
    expected.backward(seed.float())
    for mine, theirs in zip(tensors, reference, strict=True):
        assert torch.allclose(mine.grad.float(), theirs.grad, atol=1e-4 if mode else 0, rtol=1e-2)


@pytest.mark.skipif(COMPILED, reason='about the stand-in')
def test_steps_of_two_processes_are_batch_norm_over_both(device):
    # As mmcv does with all_reduce: means of means, and of variances around the common mean.
    extension = importlib.import_module('mmcv._ext')
    x, weight, bias = case(device=device)
    parts = [part.flatten(2) for part in x.split(2)]
    zeros = [torch.zeros(3, device=device) for _ in range(6)]
    means, variances = zeros[:2], zeros[2:4]
    for part, mean in zip(parts, means, strict=True):
        extension.sync_bn_forward_mean(part, mean)
    mean = (means[0] + means[1]) / 2
    for part, variance in zip(parts, variances, strict=True):
        extension.sync_bn_forward_var(part, mean, variance)
    variance = (variances[0] + variances[1]) / 2
    running = [torch.zeros(3, device=device), torch.ones(3, device=device)]
    expected_running = [t.clone() for t in running]
    expected = functional.batch_norm(x, *expected_running, weight, bias, True, .1, 1e-5)
    outputs = []
    for part in parts:
        statistics = [t.clone() for t in running]
        outputs.append(torch.zeros_like(part))
        extension.sync_bn_forward_output(
            part, mean, variance, weight, bias, *statistics, torch.zeros_like(part), zeros[5],
            outputs[-1], eps=1e-5, momentum=torch.tensor([.1], device=device), group_size=2)
    assert torch.allclose(torch.cat(outputs).view_as(expected), expected, atol=1e-5)
    for mine, theirs in zip(statistics, expected_running, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.skipif(COMPILED, reason='the compiled operator cannot be launched on nothing')
def test_an_empty_batch_leaves_the_statistics_alone(device):
    x, weight, bias = case(device=device, batch=0)
    running = [torch.full((3,), 2., device=device), torch.full((3,), 3., device=device)]
    output = function.apply(x.requires_grad_(), *running, weight, bias, .2, 1e-5, None, 1, 'N')
    assert output.shape == (0, 3, 5, 6)
    output.sum().backward()
    assert running[0].tolist() == [2.] * 3 and running[1].tolist() == [3.] * 3
