"""Batch normalization in steps, between which mmcv synchronizes statistics of processes."""

import torch
from torch import Tensor

__all__ = ['OPERATORS']


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Compute the mean of each channel.

    Args:
        input: Shape (B, C, S), float16 or float32.
        mean: Written in place, float32, shape (C,).
    """
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Compute the variance of each channel around a mean of all processes.

    Args:
        input: Shape (B, C, S).
        mean: Shape (C,).
        var: Written in place, float32, shape (C,).
    """
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalize an input, and update running statistics.

    Args:
        input: Shape (B, C, S).
        mean: Shape (C,).
        var: Shape (C,).
        weight: Shape (C,).
        bias: Shape (C,).
        running_mean: Updated in place, shape (C,), or None.
        running_var: Updated in place, shape (C,), or None.
        norm: The normalized input is written here, float32, shape (B, C, S).
        std: The standard deviation is written here, shape (C,).
        output: ``norm * weight + bias`` is written here, shape (B, C, S).
        eps: Added to the variance.
        momentum: Weight of this batch in the running statistics; mmcv has it in a tensor.
        group_size: Number of processes, for the unbiased variance.
    """
    std.copy_((var + eps).sqrt())
    if input.numel():
        norm.copy_((input.float() - mean[:, None]) / std[:, None])
        output.copy_(norm * weight[:, None] + bias[:, None])
    if running_mean is None or running_var is None:
        return
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    share = torch.as_tensor(momentum, device=mean.device)
    running_mean.mul_(1 - share).add_(share * mean)
    running_var.mul_(1 - share).add_(share * unbiased)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor,
                           grad_bias: Tensor) -> None:
    """Compute the gradients by weight and bias.

    Args:
        grad_output: Shape (B, C, S).
        norm: The normalized input, shape (B, C, S).
        grad_weight: Written in place, shape (C,).
        grad_bias: Written in place, shape (C,).
    """
    grad = grad_output.float()
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Compute the gradient by the input.

    Args:
        grad_output: Shape (B, C, S).
        weight: Shape (C,).
        grad_weight: Mean over processes of what `sync_bn_backward_param` computes, shape (C,).
        grad_bias: The same for the bias, shape (C,).
        norm: The normalized input, shape (B, C, S).
        std: Shape (C,).
        grad_input: Written in place, shape (B, C, S).
    """
    count = grad_output.shape[0] * grad_output.shape[2]
    through_statistics = (grad_weight[:, None] * norm + grad_bias[:, None]) / max(count, 1)
    grad_input.copy_((weight / std)[:, None] * (grad_output.float() - through_statistics))


OPERATORS = (
    sync_bn_forward_mean,
    sync_bn_forward_var,
    sync_bn_forward_output,
    sync_bn_backward_param,
    sync_bn_backward_data,
)
