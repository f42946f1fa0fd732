"""Averages over displaced and rotated regions."""

import importlib
import itertools
import math

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')


def case(device='cpu'):
    """Feature maps of shape (2, 3, 7, 9), and RoIs in a scale of 2 to them, shape (5, 5)."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    rois = torch.tensor([
        [0, 1.3, 2.1, 12.9, 11.2], [1, 0., 0., 18., 14.], [1, -5.2, -3.4, 6.1, 5.3],
        [0, 11.7, 9.4, 25.3, 19.6], [1, 6.2, 4.6, 6.9, 5.1]], dtype=torch.float64)
    offset = torch.randn(5, 2, 3, 2, generator=generator, dtype=torch.float64)
    return image.to(device), rois.to(device), offset.to(device)


def pixel(image, y, x):
    """Interpolate a map of shape (C, H, W)."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros_like(image[:, 0, 0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    rows = ((math.floor(y), 1 - y % 1), (min(math.floor(y) + 1, height - 1), y % 1))
    columns = ((math.floor(x), 1 - x % 1), (min(math.floor(x) + 1, width - 1), x % 1))
    return sum(share_y * share_x * image[:, row, column]
               for (row, share_y), (column, share_x) in itertools.product(rows, columns))


def slow_deform_roi_pool(image, rois, offset, scale, ratio, gamma):
    output = torch.zeros(len(rois), image.shape[1], 3, 2, dtype=torch.float64)
    for k, i, j in itertools.product(range(len(rois)), range(3), range(2)):
        batch, *corners = rois[k].tolist()
        x1, y1, x2, y2 = (c * scale - .5 for c in corners)
        height, width = (y2 - y1) / 3, (x2 - x1) / 2
        rows, columns = ratio or math.ceil(height), ratio or math.ceil(width)
        top = y1 + i * height + gamma * (y2 - y1) * float(offset[k, 1, i, j])
        left = x1 + j * width + gamma * (x2 - x1) * float(offset[k, 0, i, j])
        samples = [pixel(image[int(batch)], top + (a + .5) * height / rows,
                         left + (b + .5) * width / columns)
                   for a in range(rows) for b in range(columns)]
        output[k, :, i, j] = sum(samples) / len(samples)
    return output


def test_deform_roi_pool_by_hand(device):
    # Columns of 0, 1, 2, 3, ...; one bin from x = 1 to 2 of one sample, at 1.5, that is moved by
    # half of the RoI's width: 0.1 * 5 * 1 pixel. The value grows by 1 for each pixel.
    image = torch.arange(6., device=device).expand(1, 1, 4, 6).contiguous().requires_grad_()
    rois = torch.tensor([[0., 1.5, 1., 2.5, 2.]], device=device)
    offset = torch.tensor([5., 0.], device=device).view(1, 2, 1, 1).requires_grad_()
    pooled = mmcv_functions.deform_roi_pool(image, rois, offset, (1, 1))
    assert pooled.item() == pytest.approx(2.)
    pooled.backward()
    assert offset.grad.flatten().tolist() == pytest.approx([.1, 0.])
    assert mmcv_functions.deform_roi_pool(image, rois, None, (1, 1)).item() == pytest.approx(1.5)


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_against_a_slow_one(device, ratio):
    image, rois, offset = case()
    expected = slow_deform_roi_pool(image, rois, offset, .5, ratio, .2)
    pooled = mmcv_functions.deform_roi_pool(*(t.to(device) for t in (image, rois, offset)), (3, 2),
                                            .5, ratio, .2)
    assert torch.allclose(pooled.cpu(), expected, atol=1e-12)
    assert torch.allclose(
        mmcv_functions.deform_roi_pool(image.to(device), rois.to(device), None, (3, 2), .5,
                                       ratio).cpu(),
        slow_deform_roi_pool(image, rois, 0 * offset, .5, ratio, .2), atol=1e-12)


@stand_in_only  # the compiled gradient differs at the border
@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_gradient(device, ratio):
    image, rois, offset = case(device)
    assert torch.autograd.gradcheck(
        lambda x, o: mmcv_functions.deform_roi_pool(x, rois, o, (3, 2), .5, ratio, .2),
        (image.requires_grad_(), offset.requires_grad_()), nondet_tol=1e-10, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda x: mmcv_functions.deform_roi_pool(x, rois, None, (3, 2), .5, ratio),
        image, nondet_tol=1e-10, fast_mode=True)


@stand_in_only
def test_deform_roi_pool_in_half_precision_and_of_nothing(device):
    image, rois, offset = (t.half() for t in case(device))
    output = mmcv_functions.deform_roi_pool(image.requires_grad_(), rois, offset, (3, 2), .5)
    expected = mmcv_functions.deform_roi_pool(image.detach().float(), rois.float(), offset.float(),
                                              (3, 2), .5)
    assert torch.equal(output, expected.half())
    output.sum().backward()
    assert image.grad.dtype == torch.float16
    assert mmcv_functions.deform_roi_pool(image, rois[:0], offset[:0], (3, 2)).shape == (0, 3, 3, 2)
    inverted = rois[:, [0, 3, 4, 1, 2]]  # of negative size, which has no samples
    assert mmcv_functions.deform_roi_pool(image, inverted, offset, (3, 2)).abs().max() == 0


@stand_in_only
@pytest.mark.parametrize('name', ['DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'])
def test_deform_roi_pool_modules(device, name):
    image, rois, _ = case(device)
    layer = getattr(mmcv_functions, name)((3, 2), 3, deform_fc_channels=8, spatial_scale=.5)
    layer = layer.to(device)
    output = layer(image.float(), rois.float())
    assert output.shape == (5, 3, 3, 2)
    output.square().sum().backward()
    assert layer.offset_fc[-1].weight.grad.abs().max() > 0


def test_rotated_roi_align_by_hand(device):
    # The value is 10 * y + x. Samples of a square RoI around (2, 3), 2 wide, in 2 x 2 bins, are
    # half a pixel off the center. Turned by 90 degrees clockwise, what was at the upper left is at
    # the upper right.
    image = (10 * torch.arange(7., device=device)[:, None] + torch.arange(6., device=device))
    rois = torch.tensor([[0., 2.5, 3.5, 2., 2., math.pi / 2]], device=device)
    options = ((2, 2), 1., 1, True)
    turned = mmcv_functions.roi_align_rotated(image[None, None], rois, *options, True)
    assert turned.flatten().tolist() == pytest.approx([27.5, 37.5, 26.5, 36.5], abs=1e-4)
    turned = mmcv_functions.roi_align_rotated(image[None, None], rois, *options, False)
    assert turned.flatten().tolist() == pytest.approx([36.5, 26.5, 37.5, 27.5], abs=1e-4)


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_rotated_roi_align_of_upright_rois_is_roi_align(device, ratio, aligned):
    image, rois, _ = case(device)
    centered = torch.stack((rois[:, 0], (rois[:, 1] + rois[:, 3]) / 2,
                            (rois[:, 2] + rois[:, 4]) / 2, rois[:, 3] - rois[:, 1],
                            rois[:, 4] - rois[:, 2], 0 * rois[:, 0]), dim=1)
    keep = slice(0, 4) if not aligned else slice(None)  # a minimal size grows around the center
    pool = mmcv_functions.RoIAlign((3, 2), .5, ratio, aligned=aligned)
    rotated = mmcv_functions.roi_align_rotated(image, centered[keep], (3, 2), .5, ratio, aligned)
    assert torch.allclose(rotated, pool(image, rois[keep]), atol=1e-12)


def test_rotated_roi_align_gradient(device):
    image, rois, _ = case(device)
    turned = torch.cat((rois[:, :3], rois[:, 3:].abs() / 2, rois[:, 1:2]), dim=1)
    assert torch.autograd.gradcheck(
        lambda x: mmcv_functions.roi_align_rotated(x, turned, (3, 2), .5, 0),
        image.requires_grad_(), nondet_tol=1e-10, fast_mode=True)
