"""Convolution at the marked places of a feature map alone."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ['OPERATORS']


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Gather what the kernel covers at each marked place of the output.

    Args:
        im: One feature map, shape (1, C, H, W).
        mask_h_idx: Rows of the marked places, int64, shape (M,).
        mask_w_idx: Columns of the marked places, int64, shape (M,).
        col: Written in place, shape (C * kernel_h * kernel_w, M).
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        pad_h: Padding with zeros at the top and bottom.
        pad_w: Padding with zeros at the left and right.

    Raises:
        ValueError: If a marked place is outside the output.
    """
    if col.numel() == 0:
        return
    padded = functional.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    _check_places(mask_h_idx, mask_w_idx, padded.shape[1] - kernel_h + 1,
                  padded.shape[2] - kernel_w + 1)
    rows = torch.arange(kernel_h, device=im.device)[:, None, None] + mask_h_idx
    columns = torch.arange(kernel_w, device=im.device)[:, None] + mask_w_idx
    col.copy_(padded[:, rows, columns].view_as(col))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put a value for each marked place into a feature map; the others stay as they are.

    Args:
        col: Shape (channels, M).
        mask_h_idx: Rows of the marked places, int64, shape (M,).
        mask_w_idx: Columns of the marked places, int64, shape (M,).
        im: Written in place, shape (1, channels, height, width).
        height: Height of ``im``.
        width: Width of ``im``.
        channels: Channels of ``im``.

    Raises:
        ValueError: If a marked place is outside ``im``.
    """
    if col.numel() == 0:
        return
    _check_places(mask_h_idx, mask_w_idx, height, width)
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)


def _check_places(rows: Tensor, columns: Tensor, height: int, width: int) -> None:
    if int(rows.max()) >= height or int(columns.max()) >= width:
        raise ValueError(
            f'the mask of a masked convolution marks places outside its output of {height} x '
            f'{width} pixels: choose a padding that keeps the size of the feature map')


OPERATORS = (masked_im2col_forward, masked_col2im_forward)
