"""Focal losses, of independent classes (sigmoid) and of exclusive ones (softmax)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .precision import widen, working_dtype

__all__ = ['OPERATORS']

# Logarithms are bounded by that of the smallest normal float32, as in the compiled softmax loss.
_SMALLEST = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the focal loss of every logit against a class index for each row.

    With ``p = sigmoid(x)`` the loss is ``-alpha (1 - p)^gamma log(p)`` at the row's own
    class and ``-(1 - alpha) p^gamma log(1 - p)`` at all others.

    Args:
        input: Logits, shape (N, C).
        target: Class indices, int64, shape (N,). C means background; so do negatives.
        weight: A factor for the rows of each class, shape (C,), or empty. Background rows keep the
            factor 1, as they have no class.
        output: Written in place, shape (N, C).
        gamma: Exponent that reduces the loss of entries that are right already.
        alpha: Weight of positive entries, in [0, 1]; that of the others is ``1 - alpha``.

    Raises:
        ValueError: If an index in ``target`` exceeds C.
    """
    if input.numel() == 0:
        return
    num_classes = input.size(1)
    largest = int(target.max())
    if largest > num_classes:
        raise ValueError(
            f'target holds the class index {largest}, but the input has only {num_classes} '
            f'classes. Use indices from 0 to {num_classes - 1}, and {num_classes} for background.')
    loss = _over_classes(_margin_loss, input, target, weight, gamma, alpha, at_others=1 - alpha)
    output.copy_(loss)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the derivative of each entry of `sigmoid_focal_loss_forward` by its own logit.

    Args:
        input: As in the forward pass, shape (N, C).
        target: As in the forward pass, shape (N,).
        weight: As in the forward pass, shape (C,) or empty.
        grad_input: Written in place, shape (N, C).
        gamma: As in the forward pass.
        alpha: As in the forward pass.
    """
    if input.numel() == 0:
        return
    # The margin of a negative entry is -x, which turns the sign of its slope by x.
    slope = _over_classes(_margin_slope, input, target, weight, gamma, alpha, at_others=alpha - 1)
    grad_input.copy_(slope)


def _over_classes(
    curve: Callable[[Tensor, float], Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: float,
    alpha: float,
    at_others: float,
) -> Tensor:
    """Evaluate a function of the margin for every entry, as positive or as negative.

    The margin is the logit, signed so that more is better: x at the row's own class and -x
    elsewhere. All entries are computed as negatives first, and one of each row is corrected, which
    needs no one-hot mask of shape (N, C). Gather and scatter need no synchronization with the
    device, as a search for foreground rows would.

    Args:
        curve: Takes margins of any shape and gamma.
        input: Logits, shape (N, C), not empty.
        target: Class indices, shape (N,); others than 0 .. C-1 are background.
        weight: A factor per class, shape (C,), or empty.
        gamma: The exponent.
        alpha: Factor for the entry at the row's own class.
        at_others: Factor for all other entries.

    Returns:
        float32, or float64 if ``input`` is; shape (N, C).
    """
    logits = input.to(working_dtype(input.dtype))
    foreground = (target >= 0) & (target < logits.size(1))
    column = target.clamp(0, logits.size(1) - 1)
    values = curve(-logits, gamma).mul_(at_others)
    index = column[:, None]
    own = curve(logits.gather(1, index), gamma).mul_(alpha)
    values.scatter_(1, index, torch.where(foreground[:, None], own, values.gather(1, index)))
    if weight.numel() > 0:
        factor = torch.where(foreground, weight.to(values.dtype)[column], 1.0)
        values.mul_(factor[:, None])
    return values


def _margin_loss(margin: Tensor, gamma: float) -> Tensor:
    """Return ``-q^gamma log(1 - q)`` with ``q = sigmoid(-margin)``, of the shape of ``margin``.

    logsigmoid computes the logarithm even where 1 - q is too small for its dtype.
    """
    error = margin.neg().sigmoid_()
    return error.pow_(gamma).mul_(functional.logsigmoid(margin)).neg_()


def _margin_slope(margin: Tensor, gamma: float) -> Tensor:
    """Return the derivative of `_margin_loss` by the margin, of the shape of ``margin``.

    With ``dq/dm = -q (1 - q)`` and ``d log(1 - q)/dm = q`` the product rule gives
    ``q^gamma (gamma (1 - q) log(1 - q) - q)``.
    """
    error = margin.neg().sigmoid_()
    slope = functional.logsigmoid(margin).mul_(margin.sigmoid()).mul_(gamma).sub_(error)
    return slope.mul_(error.pow_(gamma))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the focal loss of each row from the probability ``p`` of its class.

    The loss is ``-alpha (1 - p)^gamma log(p)``.

    Args:
        input: Probabilities, shape (N, C).
        target: Class indices, int64, shape (N,); rows with negative ones have no loss.
        weight: A factor for the rows of each class, shape (C,), or empty.
        output: Written in place, shape (N,).
        gamma: Exponent that reduces the loss of rows that are right already.
        alpha: Factor of all rows.

    Raises:
        ValueError: If an index in ``target`` exceeds C - 1.
    """
    if input.numel() == 0:
        return
    largest = int(target.max())
    if largest >= input.size(1):
        raise ValueError(
            f'target holds the class index {largest}, but the input has only {input.size(1)} '
            f'classes. Use indices from 0 to {input.size(1) - 1}; the softmax loss has a class for '
            'the background, too, if there is one.')
    probability, factor = _of_target(input, target, weight)
    loss = -alpha * (1 - probability).pow(gamma) * probability.clamp(min=_SMALLEST).log()
    output.copy_(factor * loss)


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of each row of `softmax_focal_loss_forward` by its logits.

    Args:
        input: As in the forward pass: probabilities, not logits; shape (N, C).
        target: As in the forward pass.
        weight: As in the forward pass.
        buff: The derivative of each row by its logarithm of ``p`` is written here, shape (N,).
        grad_input: Written in place, shape (N, C).
        gamma: As in the forward pass.
        alpha: As in the forward pass.
    """
    if input.numel() == 0:
        return
    probability, factor = _of_target(input, target, weight)
    error = 1 - probability
    # log(p) / (1 - p) tends to -1; written so, no power of 0 has a negative exponent.
    ratio = torch.where(error > 0, probability.clamp(min=_SMALLEST).log()
                        / torch.where(error > 0, error, 1.0), -1.0)
    slope = factor * alpha * error.pow(gamma) * (gamma * probability * ratio - 1)
    buff.copy_(slope)
    # The derivative of log(p) by the logits is the one-hot target minus the probabilities.
    grad = -slope[:, None] * widen(input)
    grad.scatter_add_(1, target.clamp(min=0)[:, None], slope[:, None])
    grad_input.copy_(grad)


def _of_target(input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of each row's class and the factor of its loss, shape (N,)."""
    is_class = target >= 0
    index = target.clamp(min=0)
    probability = widen(input).gather(1, index[:, None])[:, 0]
    factor = weight.to(probability.dtype)[index] if weight.numel() else probability.new_ones(())
    return probability, torch.where(is_class, factor, 0.0)


OPERATORS = (
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    softmax_focal_loss_forward,
    softmax_focal_loss_backward,
)
