import torch
from torch import Tensor

from .precision import working_dtype


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average bilinear samples of a feature map in each bin of each RoI.

    Args:
        input: Feature maps, shape (N, C, H, W).
        rois: ``(batch index, x1, y1, x2, y2)``, shape (K, 5); may differ in dtype.
        output: Written in place, shape (K, C, aligned_height, aligned_width).
        argmax_y: Used by max pooling only.
        argmax_x: Used by max pooling only.
        aligned_height: Bins per RoI along y.
        aligned_width: Bins per RoI along x.
        spatial_scale: Feature map pixels per unit of the RoIs' coordinates.
        sampling_ratio: Samples per bin and axis; 0 for one per feature map pixel.
        pool_mode: 1 for average pooling; 0, max pooling, is not available.
        aligned: Whether pixel centres lie half a pixel off their corner coordinates.

    Raises:
        MissingOpError: If ``pool_mode`` is 0.
    """
    _require_average(pool_mode)
    if output.numel() == 0:
        return
    dtype = working_dtype(input.dtype)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``.

    Args:
        grad_output: Shape (K, C, aligned_height, aligned_width).
        rois: As in the forward pass, shape (K, 5).
        argmax_y: Used by max pooling only.
        argmax_x: Used by max pooling only.
        grad_input: Accumulated into in place, shape (N, C, H, W).
        aligned_height: As in the forward pass.
        aligned_width: As in the forward pass.
        spatial_scale: As in the forward pass.
        sampling_ratio: As in the forward pass.
        pool_mode: As in the forward pass.
        aligned: As in the forward pass.

    Raises:
        MissingOpError: If ``pool_mode`` is 0.
    """
    _require_average(pool_mode)
    if grad_output.numel() == 0:
        return
    dtype = working_dtype(grad_input.dtype)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _require_average(pool_mode: int) -> None:
    if pool_mode == 0:
        raise NotImplementedError("RoIAlign with pool_mode='max'")


OPERATORS = (roi_align_forward, roi_align_backward)
