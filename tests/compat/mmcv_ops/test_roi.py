"""Pooling of regions."""

import importlib
import math

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')


def slow_roi_align(image, rois, size, scale, ratio, aligned, mode='avg'):
    """RoIAlign one sample at a time; differentiable by ``image``.

    Args:
        image: Shape (N, C, H, W).
        rois: Shape (K, 5).

    Returns:
        Shape (K, C, *size); the averages or, with ``mode='max'``, the largest samples.
    """
    height, width = image.shape[2:]

    def pixel(batch, y, x):
        # More than a pixel beyond the border there is nothing; closer to it, the border.
        if not (-1 <= y <= height and -1 <= x <= width):
            return torch.zeros_like(image[batch, :, 0, 0])
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = math.floor(y), math.floor(x)
        total = 0
        for row, share_y in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
            for column, share_x in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
                total = total + share_y * share_x * image[batch, :, row, column]
        return total

    def positions(start, extent, bins, index):
        samples = ratio if ratio > 0 else math.ceil(extent / bins)
        step = extent / bins / max(samples, 1)
        return [start + index * extent / bins + (k + .5) * step for k in range(samples)]

    pooled = []
    for batch, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (.5 if aligned else 0) for c in corners)
        extent_x, extent_y = x2 - x1, y2 - y1
        if not aligned:
            extent_x, extent_y = max(extent_x, 1.), max(extent_y, 1.)
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [pixel(int(batch), y, x)
                           for y in positions(y1, extent_y, size[0], i)
                           for x in positions(x1, extent_x, size[1], j)]
                none = torch.zeros_like(image[0, :, 0, 0])
                if mode == 'max':
                    pooled.append(torch.stack(samples).amax(0) if samples else none)
                else:
                    pooled.append(sum(samples, none) / max(len(samples), 1))
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def roi_align_case(dtype=torch.float64, device='cpu'):
    """Feature maps of shape (2, 3, 7, 9), and RoIs in a scale of 2 to them, shape (6, 5)."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    rois = torch.tensor([
        [0, 1.3, 2.1, 12.9, 11.2],
        [1, 0., 0., 18., 14.],  # the whole map
        [1, -5.2, -3.4, 6.1, 5.3],  # beyond the upper left corner
        [0, 11.7, 9.4, 25.3, 19.6],  # beyond the lower right corner
        [1, 6.2, 4.6, 6.9, 5.1],  # narrower than a pixel
        [0, 30., 30., 40., 40.],  # off the map
    ], dtype=torch.float64)
    return image.to(device, dtype), rois.to(device, dtype)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize(('aligned', 'expected'), [
    # The RoI covers x and y from 1 to 3, in one bin of 2 * 2 pixels, and so both ratios take
    # 2 * 2 samples at a distance of 1, whose mean is a plane's value in the middle.
    (False, 22.0),  # middle (2, 2): 2 + 10 * 2
    (True, 16.5),  # half a pixel less, middle (1.5, 1.5): 1.5 + 10 * 1.5
])
def test_roi_align_by_hand(device, ratio, aligned, expected):
    line = torch.arange(5., device=device)
    plane = (line[None, :] + 10 * line[:, None])[None, None]  # x + 10 y
    rois = torch.tensor([[0., 1., 1., 3., 3.]], device=device)
    pooled = mmcv_functions.roi_align(plane, rois, 1, 1., ratio, 'avg', aligned)
    assert pooled.tolist() == [[[[pytest.approx(expected, abs=1e-5)]]]]
    # The same box in an image of twice the size.
    pooled = mmcv_functions.roi_align(plane, rois * 2, 1, .5, ratio, 'avg', aligned)
    assert pooled.tolist() == [[[[pytest.approx(expected, abs=1e-5)]]]]


def test_roi_align_bins_by_hand(device):
    # One channel, one row per bin: rows of 0, 10, 20, 30. The RoI's y runs from 0 to 3 after the
    # shift, in 3 bins of one sample each, at 0.5, 1.5 and 2.5: the values 5, 15 and 25.
    image = (10 * torch.arange(4., device=device))[None, None, :, None].expand(1, 1, 4, 4)
    rois = torch.tensor([[0., .5, .5, 3.5, 3.5]], device=device)
    pooled = mmcv_functions.roi_align(image.contiguous(), rois, (3, 1), 1., 1, 'avg', True)
    assert torch.allclose(pooled.flatten().cpu(), torch.tensor([5., 15., 25.]), atol=1e-5)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_against_a_slow_one(device, dtype, tolerance, ratio, aligned):
    image, rois = roi_align_case()
    size, scale = (3, 2), .5
    image.requires_grad_()
    expected = slow_roi_align(image, rois, size, scale, ratio, aligned)
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2),
                       dtype=torch.float64)
    slope, = torch.autograd.grad(expected, image, seed)

    copy = image.detach().to(device, dtype).requires_grad_()
    pool = mmcv_functions.RoIAlign(size, scale, ratio, aligned=aligned)
    pooled = pool(copy, rois.to(device, dtype))
    assert pooled.shape == (6, 3, 3, 2) and pooled.dtype == dtype
    assert torch.allclose(pooled.detach().cpu().double(), expected.detach(), atol=tolerance)
    assert pooled[5].abs().max() == 0  # off the map
    assert pooled[:5].abs().amax(dim=(1, 2, 3)).min() > 0.01
    pooled.backward(seed.to(device, dtype))
    assert copy.grad is not None and copy.grad.dtype == dtype
    assert torch.allclose(copy.grad.cpu().double(), slope, atol=tolerance)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_gradient(device, ratio, aligned):
    image, rois = roi_align_case(device=device)
    pool = mmcv_functions.RoIAlign((3, 2), .5, ratio, aligned=aligned)
    # On CUDA the contributions of overlapping RoIs are summed in no fixed order.
    assert torch.autograd.gradcheck(lambda x: pool(x, rois), image.requires_grad_(),
                                    nondet_tol=1e-12, fast_mode=True)


def test_roi_align_of_no_rois(device):
    if COMPILED and device == 'cuda':
        pytest.skip('the compiled kernel cannot be launched on nothing')
    image = torch.ones(2, 3, 4, 5, device=device, requires_grad=True)
    pooled = mmcv_functions.RoIAlign(7)(image, torch.empty(0, 5, device=device))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert image.grad is not None and image.grad.abs().max() == 0


def test_roi_align_backward_accumulates(device):
    # One bin of 2 * 2 pixels with a sample on each: a quarter of the gradient for each.
    extension = importlib.import_module('mmcv._ext')
    grad_input = torch.full((1, 1, 3, 3), 5., device=device)
    nothing = torch.empty(0, device=device)
    extension.roi_align_backward(
        torch.full((1, 1, 1, 1), 8., device=device),
        torch.tensor([[0., 0., 0., 2., 2.]], device=device), nothing, nothing, grad_input,
        aligned_height=1, aligned_width=1, spatial_scale=1., sampling_ratio=2, pool_mode=1,
        aligned=True)
    assert grad_input.tolist() == [[[[7., 7., 5.], [7., 7., 5.], [5., 5., 5.]]]]


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('rois_dtype', ['same', torch.float32, torch.float64])
def test_roi_align_in_half_precision(device, dtype, rois_dtype):
    image, rois = roi_align_case(dtype, device)
    if rois_dtype != 'same':
        _, rois = roi_align_case(rois_dtype, device)
    image.requires_grad_()
    pool = mmcv_functions.RoIAlign((3, 2), .5, 2)
    pooled = pool(image, rois)
    # The same in float32 on the same, rounded, values: only the result may be rounded again.
    exact = image.detach().float().requires_grad_()
    expected = pool(exact, rois.float())
    assert pooled.dtype == dtype
    assert torch.equal(pooled, expected.to(dtype))
    seed = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    pooled.backward(seed)
    expected.backward(seed.float())
    assert image.grad is not None and image.grad.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    assert exact.grad is not None and exact.grad.abs().max() > 0.1
    assert torch.allclose(image.grad.float(), exact.grad, rtol=tolerance, atol=1e-6)


@stand_in_only
def test_roi_align_under_autocast(device):
    image, rois = roi_align_case(torch.float32, device)
    layer = torch.nn.Conv2d(3, 4, 1).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        features = layer(image)
        pooled = mmcv_functions.RoIAlign(2, .5)(features, rois)
    assert features.dtype == pooled.dtype == torch.bfloat16
    pooled.float().sum().backward()
    # The bias adds to every sample on the map; the five RoIs that are there have 2 * 2 bins.
    assert layer.bias.grad is not None
    assert torch.all((layer.bias.grad > 10) & (layer.bias.grad <= 20))


# --- RoIAlign with max pooling ----------------------------------------------------------------


def test_max_roi_align_by_hand(device):
    # Pixels of 0 to 3 along x. The RoI's x runs from 0 to 3 after the shift, in one bin of three
    # samples, at 0.5, 1.5 and 2.5: the largest is 2.5, from half of the pixels 2 and 3.
    image = torch.arange(4., device=device)[None, None, None].repeat(1, 1, 4, 1).requires_grad_()
    rois = torch.tensor([[0., .5, .5, 3.5, 1.5]], device=device)
    pooled = mmcv_functions.roi_align(image, rois, (1, 1), 1., 0, 'max', True)
    assert pooled.flatten().tolist() == pytest.approx([2.5])
    pooled.backward(torch.full_like(pooled, 8.))
    # The only row of samples is at y = 0.5, half way between the rows 0 and 1.
    assert image.grad[0, 0].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [0] * 4, [0] * 4]


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_max_roi_align_against_a_slow_one(device, dtype, tolerance, ratio, aligned):
    image, rois = roi_align_case()
    size, scale = (3, 2), .5
    expected = slow_roi_align(image.requires_grad_(), rois, size, scale, ratio, aligned, 'max')
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2),
                       dtype=torch.float64)
    slope, = torch.autograd.grad(expected[:5], image, seed[:5])  # the last one is off the map

    copy = image.detach().to(device, dtype).requires_grad_()
    pool = mmcv_functions.RoIAlign(size, scale, ratio, pool_mode='max', aligned=aligned)
    pooled = pool(copy, rois.to(device, dtype))
    assert pooled.dtype == dtype
    assert torch.allclose(pooled.detach().cpu().double(), expected.detach(), atol=tolerance)
    pooled.backward(seed.to(device, dtype))
    assert torch.allclose(copy.grad.cpu().double(), slope, atol=tolerance)


def test_max_roi_align_gradient(device):
    image, rois = roi_align_case(device=device)
    pool = mmcv_functions.RoIAlign((3, 2), .5, 0, pool_mode='max')
    assert torch.autograd.gradcheck(lambda x: pool(x, rois[:5]), image.requires_grad_(),
                                    nondet_tol=1e-12, fast_mode=True)


@stand_in_only
def test_max_roi_align_in_half_precision_and_of_nothing(device):
    image, rois = roi_align_case(torch.float16, device)
    pool = mmcv_functions.RoIAlign((3, 2), .5, 0, pool_mode='max')
    exact = image.float().requires_grad_()
    pooled, expected = pool(image.requires_grad_(), rois), pool(exact, rois.float())
    assert torch.equal(pooled, expected.half())
    pooled.sum().backward()
    expected.sum().backward()
    assert torch.allclose(image.grad.float(), exact.grad, rtol=2e-3, atol=1e-3)
    inverted = rois[:, [0, 3, 4, 1, 2]]  # of negative size, which has no samples
    assert pool(image, inverted).abs().max() == 0
    assert pool(image, rois[:0]).shape == (0, 3, 3, 2)


# --- RoIPool ----------------------------------------------------------------------------------


def test_roi_pool_by_hand(device):
    # Pixels 0 to 19 in 4 rows of 5. In a scale of 1/2 the RoI covers x from 1 to (5 + 1) / 2 = 3
    # and y from 0 to 2.5, in bins of one column each, and of 1.25 rows, rounded outwards: rows 0 to
    # 1 and 1 to 2.
    image = torch.arange(20., device=device).view(1, 1, 4, 5).requires_grad_()
    rois = torch.tensor([[0., 2., 0., 5., 4.]], device=device)
    pooled = mmcv_functions.roi_pool(image, rois, 2, .5)
    assert pooled.tolist() == [[[[6., 7.], [11., 12.]]]]
    pooled.backward(torch.tensor([[[[1., 2.], [3., 4.]]]], device=device))
    assert image.grad.flatten().nonzero()[:, 0].tolist() == [6, 7, 11, 12]
    assert image.grad.sum() == 10


def slow_roi_pool(image, rois, size, scale):
    height, width = image.shape[2:]
    pooled = []
    for batch, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale

        def pixels(start, end, bins, index, size):
            step = (end - start) / bins
            return range(min(max(math.floor(index * step + start), 0), size),
                         min(max(math.ceil((index + 1) * step + start), 0), size))

        for i in range(size[0]):
            for j in range(size[1]):
                rows, columns = pixels(y1, y2, size[0], i, height), pixels(x1, x2, size[1], j,
                                                                           width)
                values = [image[int(batch), :, y, x] for y in rows for x in columns]
                if not values or x2 <= x1 or y2 <= y1:
                    values = [torch.zeros_like(image[0, :, 0, 0])]
                pooled.append(torch.stack(values).amax(0))
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize('limit', [2 ** 24, 1])  # the latter gathers RoIs one by one
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-6), (torch.float64, 0)])
def test_roi_pool_against_a_slow_one(device, dtype, tolerance, limit, monkeypatch):
    monkeypatch.setattr('evit_mm.compat.mmcv_ops.roi._MAX_GATHERED', limit)
    image, rois = roi_align_case()
    rois = torch.cat((rois, rois[:1, [0, 3, 4, 1, 2]]))  # the last one has a negative size
    image = (image - 3).requires_grad_()  # negative values: the largest is not an empty bin's 0
    expected = slow_roi_pool(image, rois, (3, 2), .5)
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2),
                       dtype=torch.float64)
    slope, = torch.autograd.grad(expected, image, seed)
    copy = image.detach().to(device, dtype).requires_grad_()
    pooled = mmcv_functions.RoIPool((3, 2), .5)(copy, rois.to(device, dtype))
    assert torch.allclose(pooled.detach().cpu().double(), expected.detach(), atol=tolerance)
    assert pooled[5:].abs().max() == 0 and pooled[:2].abs().min() > 0
    pooled.backward(seed.to(device, dtype))
    assert torch.allclose(copy.grad.cpu().double(), slope, atol=max(tolerance, 1e-12))


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_pool_in_half_precision(device, dtype):
    image, rois = roi_align_case(dtype, device)
    pooled = mmcv_functions.RoIPool((3, 2), .5)(image.requires_grad_(), rois)
    expected = mmcv_functions.RoIPool((3, 2), .5)(image.detach().float(), rois.float())
    assert pooled.dtype == dtype and torch.equal(pooled.float(), expected)
    pooled.sum().backward()
    assert image.grad.float().sum().item() == (pooled != 0).sum().item()


@stand_in_only
def test_roi_pool_of_no_rois(device):
    image = torch.ones(2, 3, 4, 5, device=device, requires_grad=True)
    pooled = mmcv_functions.roi_pool(image, torch.empty(0, 5, device=device), 7)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert image.grad.abs().max() == 0
