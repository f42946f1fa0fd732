"""Convolution at marked places."""

import importlib

import pytest
import torch
from torch.nn import functional

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')


@pytest.mark.parametrize(('kernel', 'padding'), [(3, 1), (1, 0), ((3, 5), (1, 2))])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_masked_conv_is_a_convolution_at_marked_places(device, kernel, padding, dtype):
    generator = torch.Generator().manual_seed(0)
    layer = mmcv_functions.MaskedConv2d(3, 4, kernel, padding=padding).to(device, dtype)
    x = torch.randn(1, 3, 6, 7, generator=generator).to(device, dtype)
    mask = (torch.rand(1, 6, 7, generator=generator) > .6).to(device)
    assert 0 < mask.sum() < mask.numel()
    with torch.no_grad():
        output = layer(x, mask)
        expected = functional.conv2d(x, layer.weight, layer.bias, padding=padding)
    assert torch.allclose(output, expected * mask[:, None], atol=1e-5)
    assert layer(x).requires_grad  # a plain convolution without a mask


def test_masked_conv_without_marks(device):
    layer = mmcv_functions.MaskedConv2d(3, 4, 3, padding=1).to(device)
    output = layer(torch.ones(1, 3, 5, 5, device=device), torch.zeros(1, 5, 5, device=device))
    assert output.shape == (1, 4, 5, 5) and output.abs().max() == 0


def test_gathered_columns_by_hand(device):
    extension = importlib.import_module('mmcv._ext')
    image = torch.arange(6., device=device).view(1, 1, 2, 3)  # 0 1 2 above 3 4 5
    rows, columns = torch.tensor([0, 1], device=device), torch.tensor([0, 2], device=device)
    col = torch.zeros(4, 2, device=device)
    extension.masked_im2col_forward(image, rows, columns, col, kernel_h=2, kernel_w=2, pad_h=1,
                                    pad_w=1)
    # At (0, 0) the kernel covers padding and the pixel 0; at (1, 2) the pixels 1, 2, 4 and 5.
    assert col.t().tolist() == [[0., 0., 0., 0.], [1., 2., 4., 5.]]
    target = torch.full((1, 1, 2, 3), 7., device=device)
    extension.masked_col2im_forward(torch.tensor([[8., 9.]], device=device), rows, columns, target,
                                    height=2, width=3, channels=1)
    assert target.flatten().tolist() == [8., 7., 7., 7., 7., 9.]


@pytest.mark.skipif(COMPILED, reason='the compiled operator writes out of bounds')
def test_a_mark_outside_the_output_is_refused(device):
    layer = mmcv_functions.MaskedConv2d(1, 1, 3).to(device)  # without padding the output is 3 x 3
    mask = torch.ones(1, 5, 5, device=device)
    with pytest.raises(ValueError, match='outside its output of 3 x 3 pixels'):
        layer(torch.ones(1, 1, 5, 5, device=device), mask)
