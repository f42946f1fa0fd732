"""The leaves that the backbone is made of."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from . import onednn

__all__ = ['ConvNorm', 'DepthwiseConvNorm', 'FeedForward', 'SqueezeExcite', 'add_residual']


class ConvNorm(nn.Module):
    """Convolution without bias, then normalisation.

    A BN with fixed statistics is a scale and a shift per channel, so that it can be part of the
    convolution: for good, by `switch_to_deploy`, or in every training step anew, which leaves all
    gradients as they are and saves BN's time and its copy of the activations.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel; odd, padded to keep the size at stride 1.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        norm_cfg: The normalisation, in mmcv's form.
        zero_init: Start the normalisation's scale at 0, so that a residual branch starts as the
            identity.

    Attributes:
        fold_norm (bool): Compute gradients through the folded form while BN's statistics are
            fixed.
    """

    fold_norm = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *,
                 stride: int = 1, groups: int = 1, norm_cfg: dict, zero_init: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2,
                              groups=groups, bias=False)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        if zero_init and getattr(self.norm, 'weight', None) is not None:
            nn.init.zeros_(self.norm.weight)
        self._packed = onednn.PackedWeight()

    @property
    def deployed(self) -> bool:
        """Whether BN is part of the convolution for good."""
        return isinstance(self.norm, nn.Identity)

    @property
    def folds(self) -> bool:
        """Whether the next call computes with `folded`'s weights instead of BN."""
        if self.deployed:
            return True
        # Inference keeps the published order of operations; its fast form is the deployed one.
        return self.fold_norm and torch.is_grad_enabled() and self._is_fixed()

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """The weight and bias that do what convolution and BN do, with their gradients."""
        if self.deployed:
            return self.conv.weight, self.conv.bias
        if torch.compiler.is_compiling() or self._is_autocast():
            scale, shift = self._scale_and_shift()
            return self.conv.weight * scale[:, None, None, None], shift
        return _Folding.apply(self.conv.weight, *self._norm_tensors())

    def forward(self, x: Tensor, *, relu: bool = False, add: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / stride), ceil(W / stride)).

        Args:
            x: The input.
            relu: Whether a ReLU follows.
            add: A residual to add, of the output's shape, instead of a ReLU.
        """
        if self.deployed:
            return self._forward_deployed(x, relu, add)
        return _finish(self._forward_plain(x), relu, add, in_place=False)

    def _forward_plain(self, x: Tensor) -> Tensor:
        if not self.folds:
            return self.norm(self.conv(x))
        settings = (self.conv.stride, self.conv.padding, self.conv.groups)
        if torch.compiler.is_compiling() or self._is_autocast():
            # The compiler decides by itself what to keep, autocast rounds every operation.
            weight, bias = self.folded()
            if _has_few_pixels(x, weight):
                y = F.linear(_tokens(x), weight.flatten(1), bias)
                return _maps(y, x)
            return self._convolve(x, weight, bias)
        return _FoldedConvolution.apply(x, self.conv.weight, *self._norm_tensors(), *settings)

    def _forward_deployed(self, x: Tensor, relu: bool, add: Tensor | None) -> Tensor:
        conv = self.conv
        if onednn.usable(x, conv.weight):
            if conv.kernel_size == (1, 1):
                y = self._packed.matmul(conv.weight, conv.bias, _tokens(x), relu=relu,
                                        add=None if add is None else _tokens(add))
                return _maps(y, x)
            return _finish(self._packed.convolve(conv, x, relu=relu), False, add, in_place=True)
        return _finish(self._convolve(x, conv.weight, conv.bias), relu, add, in_place=True)

    def switch_to_deploy(self) -> None:
        """Fold BN into the convolution for good; any other normalisation stays.

        Raises:
            ConfigError: If BN computes its statistics from each batch.
        """
        if self.deployed:
            return
        if isinstance(self.norm, _BatchNorm):
            if not self._is_fixed():
                raise ConfigError('a BN that takes its statistics from each batch can\'t be folded '
                                  'into a convolution: call eval() first')
            weight, bias = _in_double(self.folded, self)
            self.conv.weight = nn.Parameter(weight, requires_grad=False)
            self.conv.bias = nn.Parameter(bias, requires_grad=False)
            self.norm = nn.Identity()

    def _norm_tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """BN's scale and shift, which may be missing, its mean, and one over its deviation."""
        norm = self.norm
        return norm.weight, norm.bias, norm.running_mean, (norm.running_var + norm.eps).rsqrt()

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What BN multiplies each channel with, and what it adds."""
        return _scale_and_shift(*self._norm_tensors())

    def _is_autocast(self) -> bool:
        return torch.is_autocast_enabled(self.conv.weight.device.type)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding,
                        groups=self.conv.groups)

    def _is_fixed(self) -> bool:
        norm = self.norm
        return (isinstance(norm, _BatchNorm) and not norm.training
                and norm.running_mean is not None)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B * H * W, C): no copy where channels are last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _maps(tokens: Tensor, like: Tensor) -> Tensor:
    """(B * H * W, C) as (B, C, H, W), with the batch and size of ``like``."""
    batch, _, height, width = like.shape
    return tokens.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _has_few_pixels(x: Tensor, weight: Tensor) -> bool:
    """Whether a pointwise convolution should be a product of matrices while it learns.

    At a few windows' worth of pixels, the gradient of a weight takes oneDNN three to ten times as
    long (seen in torch 2.11); from 300 pixels on there is no difference.
    """
    return (x.device.type == 'cpu' and weight.shape[2:] == (1, 1) and weight.shape[1] == x.shape[1]
            and x.shape[0] * x.shape[2] * x.shape[3] <= 256)


def _finish(y: Tensor, relu: bool, add: Tensor | None, *, in_place: bool) -> Tensor:
    y = torch.relu_(y) if relu else y
    return y if add is None else add_residual(y, add, in_place=in_place)


def _scale_and_shift(gamma: Tensor | None, beta: Tensor | None, mean: Tensor,
                     inverse_deviation: Tensor) -> tuple[Tensor, Tensor]:
    scale = inverse_deviation if gamma is None else gamma * inverse_deviation
    shift = -mean * scale if beta is None else torch.addcmul(beta, mean, scale, value=-1)
    return scale, shift


def _backward_of_folding(grad_scaled: Tensor | None, grad_shift: Tensor | None, weight: Tensor,
                         gamma: Tensor | None, mean: Tensor, inverse_deviation: Tensor,
                         needs: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the weight and of BN's scale, from those of the scaled weight and the shift."""
    if grad_scaled is None:
        return None, None
    scale = inverse_deviation if gamma is None else gamma * inverse_deviation
    grad_weight = grad_scaled * scale[:, None, None, None] if needs[0] else None
    if not needs[1]:
        return grad_weight, None
    grad_scale = (grad_scaled * weight).sum((1, 2, 3))
    if grad_shift is not None:
        grad_scale = torch.addcmul(grad_scale, grad_shift, mean, value=-1)
    return grad_weight, grad_scale * inverse_deviation


class _Folding(torch.autograd.Function):
    """The scaled weight and the shift; one node of the graph instead of half a dozen small ones."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor,
                inverse_deviation: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, gamma, mean, inverse_deviation)
        scale, shift = _scale_and_shift(gamma, beta, mean, inverse_deviation)
        if not any(ctx.needs_input_grad[1:3]):
            ctx.mark_non_differentiable(shift)
        return weight * scale[:, None, None, None], shift

    @staticmethod
    def backward(ctx: Any, grad_scaled: Tensor, grad_shift: Tensor) -> tuple[Tensor | None, ...]:
        weight, gamma, mean, inverse_deviation = ctx.saved_tensors
        grad_weight, grad_gamma = _backward_of_folding(
            grad_scaled, grad_shift, weight, gamma, mean, inverse_deviation, ctx.needs_input_grad)
        return grad_weight, grad_gamma, grad_shift if ctx.needs_input_grad[2] else None, None, None


class _FoldedConvolution(torch.autograd.Function):
    """Convolution with the scaled weight, which is not kept for the backward pass.

    At small images the scaled weights would be as large as the activations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None,
                mean: Tensor, inverse_deviation: Tensor, stride: tuple[int, int],
                padding: tuple[int, int], groups: int) -> Tensor:
        ctx.save_for_backward(x, weight, gamma, mean, inverse_deviation)
        ctx.settings = stride, padding, groups
        scale, shift = _scale_and_shift(gamma, beta, mean, inverse_deviation)
        return F.conv2d(x, weight * scale[:, None, None, None], shift, stride, padding,
                        groups=groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gamma, mean, inverse_deviation = ctx.saved_tensors
        stride, padding, groups = ctx.settings
        scale = inverse_deviation if gamma is None else gamma * inverse_deviation
        needs_x, *needs_weights = ctx.needs_input_grad[:4]
        needs = needs_x, any(needs_weights[:2]), any(needs_weights[1:])
        scaled = weight * scale[:, None, None, None]
        if _has_few_pixels(x, weight):
            tokens = _tokens(grad)
            grad_x = _maps(tokens @ scaled.flatten(1), x) if needs[0] else None
            grad_scaled = (tokens.t() @ _tokens(x)).view_as(weight) if needs[1] else None
            grad_shift = tokens.sum(0) if needs[2] else None
        else:
            grad_x, grad_scaled, grad_shift = torch.ops.aten.convolution_backward(
                grad, x, scaled, [len(scale)], stride, padding, (1, 1), False, (0, 0), groups,
                needs)
        grad_weight, grad_gamma = _backward_of_folding(
            grad_scaled, grad_shift, weight, gamma, mean, inverse_deviation, needs_weights)
        return (grad_x, grad_weight, grad_gamma, grad_shift if needs_weights[2] else None,
                None, None, None, None, None)


class DepthwiseConvNorm(ConvNorm):
    """A depthwise `ConvNorm`: every channel has its own kernel.

    Attributes:
        adds_input (bool): Whether the kernel contains the identity, after `fold_identity`.
    """

    def __init__(self, channels: int, kernel_size: int = 3, *, stride: int = 1, norm_cfg: dict,
                 zero_init: bool = False) -> None:
        super().__init__(channels, channels, kernel_size, stride=stride, groups=channels,
                         norm_cfg=norm_cfg, zero_init=zero_init)
        self.adds_input = False

    def add_to(self, x: Tensor) -> Tensor:
        """Compute ``x + self(x)``, as one convolution where BN is folded; stride 1 only."""
        if self.adds_input:
            return self(x)
        if not self.folds:
            return x + self(x)
        weight, bias = self.folded()
        return self._convolve(x, weight + _identity_kernel(weight), bias)

    def fold_identity(self) -> None:
        """Make the folded kernel add its input, so that `forward` is what `add_to` was.

        A convolution whose normalisation could not be folded stays as it is.
        """
        if self.deployed and not self.adds_input:
            self.conv.weight += _identity_kernel(self.conv.weight)
            self.adds_input = True


def _identity_kernel(weight: Tensor) -> Tensor:
    kernel = torch.zeros_like(weight[0, 0])
    kernel[weight.shape[2] // 2, weight.shape[3] // 2] = 1
    return kernel


def _in_double(compute: Callable[[], tuple[Tensor, Tensor | None]],
               module: nn.Module) -> tuple[Tensor, Tensor]:
    """Compute weights with every tensor of ``module`` in float64, and give them its dtype back.

    In half precision the scales alone would lose as much as the whole network may.
    """
    dtype = next(module.parameters()).dtype
    with torch.no_grad():
        module.double()
        weight, bias = compute()
        assert bias is not None
        return weight.to(dtype), bias.to(dtype)


def add_residual(branch: Tensor, x: Tensor, *, in_place: bool) -> Tensor:
    """Compute ``x + branch``, into the branch's memory if asked and no gradient could need it."""
    return branch.add_(x) if in_place and not torch.is_grad_enabled() else x + branch


class FeedForward(nn.Module):
    """Two pointwise `ConvNorm` with a ReLU between them; `add_to` adds the residual."""

    def __init__(self, channels: int, hidden_channels: int, *, norm_cfg: dict) -> None:
        super().__init__()
        self.expand = ConvNorm(channels, hidden_channels, norm_cfg=norm_cfg)
        self.project = ConvNorm(hidden_channels, channels, norm_cfg=norm_cfg, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.project(self.expand(x, relu=True))

    def add_to(self, x: Tensor) -> Tensor:
        """Compute ``x + self(x)``; the deployed form does without a step of its own for it."""
        if not self.project.deployed:
            return x + self(x)
        return self.project(self.expand(x, relu=True), add=x)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all channels."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.deployed = False
        self.reduce = nn.Conv2d(channels, hidden_channels, 1)
        self.expand = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        gate = self.expand(gate).sigmoid()
        return x.mul_(gate) if self.deployed and not torch.is_grad_enabled() else x * gate

    def switch_to_deploy(self) -> None:
        """Compute into the input's memory from now on."""
        self.deployed = True
