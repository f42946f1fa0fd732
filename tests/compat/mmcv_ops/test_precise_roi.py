"""Precise RoI pooling."""

import importlib
import itertools

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
if COMPILED and not torch.cuda.is_available():
    pytest.skip('the compiled operator needs CUDA', allow_module_level=True)


def case(device='cpu'):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    rois = torch.tensor([[0, 1.3, 2.1, 7.9, 8.2], [1, 0., 0., 12., 10.], [1, -3.2, -2.4, 4.1, 3.3],
                         [0, 7.7, 6.4, 15.3, 12.6], [1, 4.2, 3.6, 4.9, 4.1]], dtype=torch.float64)
    return image.to(device), rois.to(device)


def forward(image, rois, size=(3, 2), scale=.5):
    """Call the operator, as mmcv's function takes float32 alone."""
    output = image.new_zeros(len(rois), image.shape[1], *size)
    importlib.import_module('mmcv._ext').prroi_pool_forward(
        image, rois, output, pooled_height=size[0], pooled_width=size[1], spatial_scale=scale)
    return output


def test_precise_pooling_by_hand(device):
    # Along x the map is 0 at -1, 2 at 0, 6 at 1, 0 at 2, and linear in between; constant along y
    # within the map. The integral from 0 to 1 is 4, that from 1 to 2 is 3, from -1 to 0 it is 1.
    image = torch.tensor([2., 6.], device=device).expand(1, 1, 3, 2).contiguous()
    rois = torch.tensor([[0., 0., 0., 2., 2.], [0., -1., 0., 0., 2.], [0., 1., 1., 1., 1.]],
                        device=device)
    pooled = mmcv_functions.prroi_pool(image, rois, (1, 2), 1.)
    assert pooled.flatten(1)[0].tolist() == pytest.approx([4., 3.])
    assert pooled.flatten(1)[1].tolist() == pytest.approx([.5, 1.5])  # halves of a triangle
    assert pooled[2].abs().max() == 0  # no extent
    assert mmcv_functions.prroi_pool(image, rois[:0], (1, 2), 1.).shape == (0, 1, 1, 2)


def test_precise_pooling_against_fine_sampling(device):
    image, rois = case()
    count = 200
    expected = torch.zeros(len(rois), 3, 3, 2, dtype=torch.float64)
    padded = torch.nn.functional.pad(image, [20] * 4)
    for k, i, j in itertools.product(range(len(rois)), range(3), range(2)):
        x1, y1, x2, y2 = (rois[k, 1:] * .5).tolist()
        steps = (torch.arange(count, dtype=torch.float64) + .5) / count
        y = y1 + (y2 - y1) * (i + steps) / 3 + 20
        x = x1 + (x2 - x1) * (j + steps) / 2 + 20
        plane = padded[int(rois[k, 0])]
        down, right = y % 1, x % 1
        rows = plane[:, y.long()] * (1 - down)[:, None] + plane[:, y.long() + 1] * down[:, None]
        expected[k, :, i, j] = (rows[..., x.long()] * (1 - right)
                                + rows[..., x.long() + 1] * right).mean((1, 2))
    assert torch.allclose(forward(*(t.to(device) for t in (image, rois))).cpu(), expected,
                          atol=1e-4)


def test_precise_pooling_gradients(device):
    image, rois = (t.float().to(device).requires_grad_() for t in case())
    pooled = mmcv_functions.prroi_pool(image, rois, (3, 2), .5)
    seed = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).to(device)
    pooled.backward(seed)
    exact, boxes, seed = image.detach().double(), rois.detach().double(), seed.double()
    for tensor, grad in ((exact, image.grad), (boxes[:, 1:], rois.grad[:, 1:])):
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3),
                                dtype=torch.float64).to(device)
        before = tensor.clone()
        tensor.copy_(before + 1e-6 * direction)
        change = (forward(exact, boxes) * seed).sum()
        tensor.copy_(before - 1e-6 * direction)
        change = (change - (forward(exact, boxes) * seed).sum()) / 2e-6
        tensor.copy_(before)
        assert (grad * direction).sum().item() == pytest.approx(change.item(), rel=1e-4)
    assert rois.grad[:, 0].abs().max() == 0
