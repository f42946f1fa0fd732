"""Training through convolutions that a BN with fixed statistics is folded into at every step.

Such a BN is a scale and a shift per channel. Here neither it nor a ReLU between two convolutions is
a node of autograd's graph: what the backward pass needs is each convolution's input and the weights
themselves, and gradients are written into memory that is at hand. On a CPU, a step's time goes by
the memory that it touches as much as by its arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['FixedNorm', 'FoldedConv', 'convolve_folded', 'fold', 'has_few_pixels', 'maps_of',
           'scale_and_shift', 'tokens_of']


class FixedNorm(NamedTuple):
    """A BN with fixed statistics.

    Attributes:
        gamma: (C,), what it multiplies with; None for ones.
        beta: (C,), what it adds; None for zeros.
        mean: (C,).
        inverse_deviation: (C,), one over the square root of variance and epsilon.
    """

    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    inverse_deviation: Tensor


class FoldedConv(NamedTuple):
    """A convolution without bias, and the BN behind it.

    Attributes:
        weight: (C_out, C_in / groups, k, k).
        norm: The BN.
        stride: Of the convolution.
        padding: Of the convolution.
        groups: Of the convolution.
    """

    weight: Tensor
    norm: FixedNorm
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    groups: int


def scale_and_shift(norm: FixedNorm) -> tuple[Tensor, Tensor]:
    """What a fixed BN multiplies each channel with, and what it adds; (C,) each."""
    scale = _scale(norm.gamma, norm.inverse_deviation)
    if norm.beta is None:
        return scale, -norm.mean * scale
    return scale, torch.addcmul(norm.beta, norm.mean, scale, value=-1)


def fold(weight: Tensor, norm: FixedNorm) -> tuple[Tensor, Tensor]:
    """The weight and bias that do what convolution and BN do, with their gradients."""
    return _Folding.apply(weight, *norm)


def convolve_folded(x: Tensor, convs: Sequence[FoldedConv], *, relu: bool = False,
                    residual: bool = False) -> Tensor:
    """Convolve with a chain of convolutions, each with its BN, and with ReLUs between them.

    Args:
        x: (B, C, H, W).
        convs: The chain.
        relu: Whether a ReLU follows the last one, too.
        residual: Whether ``x`` is added in the end, instead of such a ReLU.

    Returns:
        Tensor: (B, C_out, H', W').
    """
    settings = _Settings(tuple((c.stride, c.padding, c.groups) for c in convs), relu, residual)
    tensors = (tensor for conv in convs for tensor in (conv.weight, *conv.norm))
    return _FoldedChain.apply(x, settings, *tensors)


def tokens_of(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B * H * W, C): no copy where channels are last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def maps_of(tokens: Tensor, like: Tensor) -> Tensor:
    """(B * H * W, C) as (B, C, H, W), with the batch and size of ``like``."""
    batch, _, height, width = like.shape
    return tokens.view(batch, height, width, -1).permute(0, 3, 1, 2)


def has_few_pixels(x: Tensor, weight: Tensor) -> bool:
    """Whether a pointwise convolution should be a product of matrices while it learns.

    At a few windows' worth of pixels, the gradient of a weight takes oneDNN three to ten times as
    long (seen in torch 2.11), and the weight has more numbers to scale than the maps. From 300
    pixels on there is no difference.
    """
    return (x.device.type == 'cpu' and weight.shape[2:] == (1, 1) and weight.shape[1] == x.shape[1]
            and x.shape[0] * x.shape[2] * x.shape[3] <= 256)


@dataclass(frozen=True)
class _Settings:
    convs: tuple[tuple[Any, Any, int], ...]
    relu: bool
    residual: bool


_PER_CONV = 5
"""Tensors of one convolution: its weight, and the four of its BN."""


def _scale(gamma: Tensor | None, inverse_deviation: Tensor) -> Tensor:
    return inverse_deviation if gamma is None else gamma * inverse_deviation


def _per_filter(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1, 1)


class _Folding(torch.autograd.Function):
    """The scaled weight and the shift; one node of the graph instead of half a dozen small ones."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor,
                inverse_deviation: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, gamma, mean, inverse_deviation)
        scale, shift = scale_and_shift(FixedNorm(gamma, beta, mean, inverse_deviation))
        if not any(ctx.needs_input_grad[1:3]):
            ctx.mark_non_differentiable(shift)
        return weight * _per_filter(scale), shift

    @staticmethod
    def backward(ctx: Any, grad_scaled: Tensor, grad_shift: Tensor) -> tuple[Tensor | None, ...]:
        weight, gamma, mean, inverse_deviation = ctx.saved_tensors
        needs_weight, needs_gamma, needs_beta = ctx.needs_input_grad[:3]
        grad_gamma = _grad_gamma(grad_scaled, grad_shift, weight, mean, inverse_deviation) \
            if needs_gamma else None
        grad_weight = _with_strides_of(
            weight, grad_scaled * _per_filter(_scale(gamma, inverse_deviation))
        ) if needs_weight else None
        return grad_weight, grad_gamma, grad_shift if needs_beta else None, None, None


class _FoldedChain(torch.autograd.Function):
    """`convolve_folded`; scaled weights are not kept for the backward pass.

    At small images they would be as large as the activations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: _Settings, *tensors: Any) -> Tensor:
        ctx.settings = settings
        maps = [x]
        for i, conv in enumerate(settings.convs):
            weight, *norm = tensors[_PER_CONV * i:_PER_CONV * (i + 1)]
            y = _convolve(maps[-1], weight, *scale_and_shift(FixedNorm(*norm)), conv)
            last = i + 1 == len(settings.convs)
            if settings.relu or not last:
                y.relu_()
            maps.append(y)
        if settings.residual:
            maps[-1].add_(x)
        ctx.save_for_backward(*(maps if settings.relu else maps[:-1]), *tensors)
        return maps[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        settings: _Settings = ctx.settings
        count = len(settings.convs)
        saved = ctx.saved_tensors  # once: recomputed activations may be unpacked a single time
        maps, tensors = saved[:-_PER_CONV * count], saved[-_PER_CONV * count:]
        needed = ctx.needs_input_grad[:1] + ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            # These gradients will be differentiated, and the maps in between are in no graph.
            x, *others = _gradients_with_graph(grad, (maps[0], *tensors), settings, needed)
            return x, None, *others
        outer = grad
        if settings.relu:
            grad = torch.ops.aten.threshold_backward(grad, maps[-1], 0)
        found: list[Tensor | None] = [None] * (_PER_CONV * count)
        inner: Tensor | None = grad
        for i in reversed(range(count)):
            first = _PER_CONV * i
            needs = any(needed[:first + 1]), *needed[first + 1:first + 4]
            assert inner is not None  # autograd stops where nothing is needed
            inner, *found[first:first + 3] = _gradients(
                inner, maps[i], tensors[first:first + _PER_CONV], settings.convs[i], needs)
            if inner is None:
                break
            if i:  # back through the ReLU, into the same memory
                torch.ops.aten.threshold_backward.grad_input(inner, maps[i], 0, grad_input=inner)
        if settings.residual and needed[0]:
            assert inner is not None
            inner.add_(outer)
        return inner, None, *found


def _gradients_with_graph(grad: Tensor, inputs: Sequence[Any], settings: _Settings,
                          needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of a chain's inputs, by autograd itself."""
    x: Any
    tensors: list[Any]
    # Aliases, so that gradients stop here.
    x, *tensors = [None if value is None else value.view_as(value) for value in inputs]
    y: Any = x
    for i, (stride, padding, groups) in enumerate(settings.convs):
        weight, *norm = tensors[_PER_CONV * i:_PER_CONV * (i + 1)]
        scale, shift = scale_and_shift(FixedNorm(*norm))
        y = F.conv2d(y, weight * _per_filter(scale), shift, stride, padding, groups=groups)
        y = y.relu() if settings.relu or i + 1 < len(settings.convs) else y
    y = y + x if settings.residual else y
    wanted = [value for value, needs in zip((x, *tensors), needed, strict=True) if needs]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if needs else None for needs in needed]


def _convolve(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, conv: tuple) -> Tensor:
    stride, padding, groups = conv
    if has_few_pixels(x, weight):  # fewer than the weight has numbers
        return F.conv2d(x, weight).mul_(scale.view(-1, 1, 1)).add_(shift.view(-1, 1, 1))
    return F.conv2d(x, weight * _per_filter(scale), shift, stride, padding, groups=groups)


def _gradients(grad: Tensor, x: Tensor, tensors: Sequence[Tensor], conv: tuple,
               needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of one convolution's input, weight, gamma and beta."""
    weight, gamma, _, mean, inverse_deviation = tensors
    stride, padding, groups = conv
    needs_x, needs_weight, needs_gamma, needs_beta = needs
    needs_filter, needs_shift = needs_weight or needs_gamma, needs_gamma or needs_beta
    scale = _scale(gamma, inverse_deviation)
    grad_x: Tensor | None
    if has_few_pixels(x, weight):
        tokens = tokens_of(grad)
        grad_x = maps_of(tokens * scale @ weight.flatten(1), x) if needs_x else None
        grad_filter = (tokens.t() @ tokens_of(x)).view_as(weight) if needs_filter else None
        grad_shift = tokens.sum(0) if needs_shift else None
    else:
        grad_x, grad_filter, grad_shift = torch.ops.aten.convolution_backward(
            grad, x, weight * _per_filter(scale), [len(scale)], stride, padding, (1, 1), False,
            (0, 0), groups, (needs_x, needs_filter, needs_shift))
    grad_weight = grad_gamma = None
    if grad_filter is not None:
        if needs_gamma:
            grad_gamma = _grad_gamma(grad_filter, grad_shift, weight, mean, inverse_deviation)
        if needs_weight:
            grad_weight = _with_strides_of(weight, grad_filter.mul_(_per_filter(scale)))
    return [grad_x, grad_weight, grad_gamma, grad_shift if needs_beta else None]


def _grad_gamma(grad_filter: Tensor, grad_shift: Tensor | None, weight: Tensor, mean: Tensor,
                inverse_deviation: Tensor) -> Tensor:
    """From the gradients of the scaled weight and of the shift, which both contain gamma."""
    grad_scale = (grad_filter * weight).sum((1, 2, 3))
    if grad_shift is not None:
        grad_scale = torch.addcmul(grad_scale, grad_shift, mean, value=-1)
    return grad_scale * inverse_deviation


def _with_strides_of(weight: Tensor, grad: Tensor) -> Tensor:
    """The same numbers; where a size is 1, one layout has several strides, which DDP compares."""
    if grad.stride() != weight.stride() and grad.is_contiguous() and weight.is_contiguous():
        return grad.as_strided(weight.shape, weight.stride())
    return grad
