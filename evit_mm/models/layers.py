"""The leaves that the backbone is made of."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from ..ops.folded_conv import (
    FixedNorm,
    FoldedConv,
    convolve_folded,
    fold,
    has_few_pixels,
    maps_of,
    scale_and_shift,
    tokens_of,
)
from . import onednn

__all__ = ['ConvNorm', 'DepthwiseConvNorm', 'FeedForward', 'SqueezeExcite', 'add_residual',
           'convolve_in_turn']


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
        if self._is_rewritten():
            scale, shift = scale_and_shift(self._fixed_norm())
            return self.conv.weight * scale[:, None, None, None], shift
        return fold(self.conv.weight, self._fixed_norm())

    def forward(self, x: Tensor, *, relu: bool = False, add: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / stride), ceil(W / stride)).

        Args:
            x: The input.
            relu: Whether a ReLU follows.
            add: A residual to add, of the output's shape, instead of a ReLU.
        """
        if self.deployed:
            return self._forward_deployed(x, relu, add)
        if self.folds and not self._is_rewritten():
            y = convolve_folded(x, [self._folded_conv()], relu=relu)
            return y if add is None else y + add
        return _finish(self._forward_plain(x), relu, add, in_place=False)

    def _forward_plain(self, x: Tensor) -> Tensor:
        if not self.folds:
            return self.norm(self.conv(x))
        weight, bias = self.folded()
        if has_few_pixels(x, weight):
            y = F.linear(tokens_of(x), weight.flatten(1), bias)
            return maps_of(y, x)
        return self._convolve(x, weight, bias)

    def _forward_deployed(self, x: Tensor, relu: bool, add: Tensor | None) -> Tensor:
        conv = self.conv
        if onednn.usable(x, conv.weight):
            if conv.kernel_size == (1, 1):
                y = self._packed.matmul(conv.weight, conv.bias, tokens_of(x), relu=relu,
                                        add=None if add is None else tokens_of(add))
                return maps_of(y, x)
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

    def _fixed_norm(self) -> FixedNorm:
        norm = self.norm
        return FixedNorm(norm.weight, norm.bias, norm.running_mean,
                         (norm.running_var + norm.eps).rsqrt())

    def _folded_conv(self) -> FoldedConv:
        conv = self.conv
        return FoldedConv(conv.weight, self._fixed_norm(), conv.stride, conv.padding, conv.groups)

    def _is_rewritten(self) -> bool:
        """Whether operations get another form: compiled, or rounded one by one by autocast.

        The compiler decides by itself what to keep for the backward pass.
        """
        return (torch.compiler.is_compiling()
                or torch.is_autocast_enabled(self.conv.weight.device.type))

    @property
    def _learns_folded(self) -> bool:
        """Whether the next call is `convolve_folded`'s, and nobody wants to see what it gives."""
        return (not self.deployed and self.folds and not self._is_rewritten()
                and not _is_watched(self))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding,
                        groups=self.conv.groups)

    def _is_fixed(self) -> bool:
        norm = self.norm
        return (isinstance(norm, _BatchNorm) and not norm.training
                and norm.running_mean is not None)


def _is_watched(module: nn.Module) -> bool:
    """Whether hooks wait for a module to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks)


def _finish(y: Tensor, relu: bool, add: Tensor | None, *, in_place: bool) -> Tensor:
    y = torch.relu_(y) if relu else y
    return y if add is None else add_residual(y, add, in_place=in_place)


def convolve_in_turn(x: Tensor, layers: Sequence[ConvNorm], *, relu: bool = False) -> Tensor:
    """Pass through layers with a ReLU between each two.

    Args:
        x: (B, C_in, H, W).
        layers: What to pass.
        relu: Whether a ReLU follows the last one, too.

    Returns:
        Tensor: (B, C_out, H', W').
    """
    if layers and all(layer._learns_folded for layer in layers):
        return convolve_folded(x, [layer._folded_conv() for layer in layers], relu=relu)
    for i, layer in enumerate(layers):
        x = layer(x, relu=relu or i + 1 < len(layers))
    return x


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
        return convolve_in_turn(x, (self.expand, self.project))

    def add_to(self, x: Tensor) -> Tensor:
        """Compute ``x + self(x)``; folded forms do without a step of its own for it."""
        if self.project.deployed:
            return self.project(self.expand(x, relu=True), add=x)
        if (self.expand._learns_folded and self.project._learns_folded
                and not _is_watched(self)):
            return convolve_folded(x, [self.expand._folded_conv(), self.project._folded_conv()],
                                   residual=True)
        return x + self(x)


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
