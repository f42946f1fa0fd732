"""Attention masks of PSANet: from places around each pixel to places on the whole map."""

import torch
from torch import Tensor

__all__ = ['OPERATORS']

_COLLECT = 0  # the value of psa_type; 1 is to distribute


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write what each pixel has for the places around it to these places.

    Args:
        input: Values for the places around each pixel, shape (B, h_mask * w_mask, H, W).
        output: Written in place, shape (B, H * W, H, W): to collect, at [:, place, pixel]; to
            distribute, at [:, pixel, place]. 0 for places that no value is for.
        psa_type: 0 to collect, 1 to distribute.
        num_: B; ``input`` has it.
        h_feature: H.
        w_feature: W.
        h_mask: Height of the surroundings.
        w_mask: Width of the surroundings.
        half_h_mask: Where the pixel is in its surroundings, from the top.
        half_w_mask: Where the pixel is in its surroundings, from the left.
    """
    if output.numel() == 0:
        return
    index, is_covered = _surroundings((h_feature, w_feature), (h_mask, w_mask),
                                      (half_h_mask, half_w_mask), input.device)
    values = input.flatten(2).gather(1, index.expand(len(input), -1, -1))
    values = values.masked_fill(~is_covered, 0)
    values = values if psa_type == _COLLECT else values.transpose(1, 2)
    output.copy_(values.reshape(output.shape))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Add the gradient of `psamask_forward` by its input.

    Args:
        grad_output: Shape (B, H * W, H, W).
        grad_input: Added to in place, shape (B, h_mask * w_mask, H, W).
        psa_type: As in the forward pass, like all that follow.
        num_: See ``psa_type``.
        h_feature: See ``psa_type``.
        w_feature: See ``psa_type``.
        h_mask: See ``psa_type``.
        w_mask: See ``psa_type``.
        half_h_mask: See ``psa_type``.
        half_w_mask: See ``psa_type``.
    """
    if grad_output.numel() == 0:
        return
    index, is_covered = _surroundings((h_feature, w_feature), (h_mask, w_mask),
                                      (half_h_mask, half_w_mask), grad_output.device)
    grad = grad_output.flatten(2)
    grad = (grad if psa_type == _COLLECT else grad.transpose(1, 2)).masked_fill(~is_covered, 0)
    # Places that are not covered point anywhere, with a gradient of 0.
    result = torch.zeros_like(grad_input).flatten(2)
    result.scatter_add_(1, index.expand(len(grad), -1, -1), grad)
    grad_input.add_(result.view_as(grad_input))


def _surroundings(size: tuple[int, int], mask_size: tuple[int, int], center: tuple[int, int],
                  device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where each place of a map is in the surroundings of each pixel.

    Returns:
        Indices into the surroundings, and whether the place is there at all; each of shape (H * W
        places, H * W pixels).
    """
    row, is_row = _offsets(size[0], mask_size[0], center[0], device)
    column, is_column = _offsets(size[1], mask_size[1], center[1], device)
    index = row[:, None, :, None] * mask_size[1] + column[:, None]  # (H, W, H, W)
    is_covered = is_row[:, None, :, None] & is_column[:, None]
    places = size[0] * size[1]
    return index.reshape(places, places), is_covered.reshape(places, places)


def _offsets(size: int, mask_size: int, center: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Do the same along an axis; shape (places, pixels)."""
    at = torch.arange(size, device=device)
    offset = at[:, None] - at + center
    return offset.clamp(0, mask_size - 1), (offset >= 0) & (offset < mask_size)


OPERATORS = (psamask_forward, psamask_backward)
