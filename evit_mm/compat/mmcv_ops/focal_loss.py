from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .precision import working_dtype


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every logit against a class index per row.

    With ``p = sigmoid(x)`` the loss is ``-alpha (1 - p)^gamma log(p)`` at the row's own
    class and ``-(1 - alpha) p^gamma log(1 - p)`` at all others.

    Args:
        input: Logits, shape (N, C).
        target: Class indices, int64, shape (N,). C means background; so do negatives.
        weight: A factor per class for the rows of that class, shape (C,), or empty for
            none. Background rows keep the factor 1, since no class is theirs.
        output: Written in place, shape (N, C).
        gamma: Exponent that plays down the entries already right.
        alpha: Share of the positive entries, in [0, 1].

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
            f'classes. Use indices from 0 to {num_classes - 1}, and {num_classes} for background.'
        )
    loss = _over_classes(_margin_loss, input, target, weight, gamma, alpha, at_others=1 - alpha)
    output.copy_(loss)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of every entry of :func:`sigmoid_focal_loss_forward` by its own logit.

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

    The margin is the logit, signed so that more is better: x at the row's own class and
    -x elsewhere. Computing all entries as negatives first and then correcting one per row
    spares the (N, C) one-hot mask, and indexing by gather and scatter the synchronisation
    with the device that looking for foreground rows would cost.

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
    """``-q^gamma log(1 - q)`` with ``q = sigmoid(-margin)``, of the shape of ``margin``.

    logsigmoid yields the logarithm where 1 - q is too small for its dtype.
    """
    error = margin.neg().sigmoid_()
    return error.pow_(gamma).mul_(functional.logsigmoid(margin)).neg_()


def _margin_slope(margin: Tensor, gamma: float) -> Tensor:
    """Derivative of :func:`_margin_loss` by the margin, of the shape of ``margin``.

    With ``dq/dm = -q (1 - q)`` and ``d log(1 - q)/dm = q`` the product rule gives
    ``q^gamma (gamma (1 - q) log(1 - q) - q)``.
    """
    error = margin.neg().sigmoid_()
    slope = functional.logsigmoid(margin).mul_(margin.sigmoid()).mul_(gamma).sub_(error)
    return slope.mul_(error.pow_(gamma))


OPERATORS = (sigmoid_focal_loss_forward, sigmoid_focal_loss_backward)
