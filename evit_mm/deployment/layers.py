"""The modules that `deploy` puts in the place of the published ones; for inference.

They keep the names of the tensors that they take over, so that their state dict reads like the
published model's, with biases in place of BN.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.attention import CascadedGroupAttention
from ..models.efficientvit import Block, Downsample
from ..models.layers import ConvNorm, DepthwiseConvNorm

__all__ = ['FoldedAttention', 'FoldedBlock', 'FoldedDownsample', 'fold_identity', 'is_folded']


def is_folded(layer: Any) -> bool:
    """Return whether a `ConvNorm` has its BN folded into the convolution."""
    return isinstance(layer.norm, nn.Identity)


@torch.no_grad()
def fold_identity(layer: DepthwiseConvNorm) -> None:
    """Change the kernels of a folded layer so that they compute ``x + layer(x)``."""
    weight = layer.conv.weight
    weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += 1


class FoldedBlock(nn.Module):
    """A `Block` whose depthwise kernels contain the identity.

    Args:
        block: A block whose layers are folded already; they become this module's.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.residual_layers = block.residual_layers
        for name in self.residual_layers:
            self.add_module(name, getattr(block, name))
        self.layers_with_identity = _fold_identities(self, self.residual_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        for name in self.residual_layers:
            layer = getattr(self, name)
            x = layer(x) if name in self.layers_with_identity else x + layer(x)
        return x


class FoldedDownsample(nn.Module):
    """A `Downsample` whose depthwise kernels contain the identity.

    Args:
        downsample: A downsampling step whose layers are folded already.
    """

    def __init__(self, downsample: Downsample) -> None:
        super().__init__()
        self.layers = tuple(downsample._modules)
        for name in self.layers:
            self.add_module(name, getattr(downsample, name))
        # The merging, of another size, has no identity beside it.
        self.layers_without_sum = ('merging', *_fold_identities(self, self.layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2))."""
        for name in self.layers:
            layer = getattr(self, name)
            x = layer(x) if name in self.layers_without_sum else x + layer(x)
        return x


def _fold_identities(module: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Fold the identity into the depthwise layers that have no normalisation left."""
    folded = []
    for name in names:
        layer = getattr(module, name)
        if isinstance(layer, DepthwiseConvNorm) and is_folded(layer):
            fold_identity(layer)
            folded.append(name)
    return tuple(folded)


class FoldedAttention(nn.Module):
    """A `CascadedGroupAttention` as matrix products on tokens with their channels last.

    The scale of the softmax is part of the query's convolution, and the biases are gathered.

    Args:
        attention: An attention layer whose convolutions are folded already.
    """

    def __init__(self, attention: CascadedGroupAttention) -> None:
        super().__init__()
        self.window_size = attention.window_size
        self.value_dim = attention.value_dim
        self.key_dim = attention.key_dim
        self.qkv = attention.qkv
        self.query_conv = attention.query_conv
        self.proj = attention.proj
        with torch.no_grad():
            biases = attention.attention_biases[:, attention.bias_index].contiguous()
            for layer in self.query_conv:
                assert isinstance(layer, ConvNorm) and layer.conv.bias is not None
                layer.conv.weight *= attention.scale
                layer.conv.bias *= attention.scale
        self.attention_biases = nn.Parameter(biases)  # (heads, N, N)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) of any height and width to the same shape."""
        batch, channels, height, width = x.shape
        size = self.window_size
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, columns * size - width, 0, rows * size - height))
        tokens = x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3)
        tokens = tokens.reshape(batch * rows * columns, size * size, channels)
        outputs: list[Tensor] = []
        for head, features in enumerate(tokens.split(self.value_dim, dim=2)):
            if outputs:
                features = features + outputs[-1]
            outputs.append(self._attend(head, features))
        x = torch.cat(outputs, dim=2).view(batch, rows, columns, size, size, channels)
        x = x.transpose(2, 3).reshape(batch, rows * size, columns * size, channels)
        # Cropped before the projection, which then has no padding to work on.
        x = x[:, :height, :width].permute(0, 3, 1, 2)
        return self.proj(F.relu(x))

    def _attend(self, head: int, features: Tensor) -> Tensor:
        """Map a head's tokens (windows, N, value_dim) to the same shape."""
        windows, tokens, _ = features.shape
        qkv: Any = self.qkv[head]
        sizes = (self.key_dim, self.key_dim + self.value_dim)
        weights = qkv.conv.weight.flatten(1).split(sizes)
        biases = qkv.conv.bias.split(sizes)
        # The query apart, because its convolution wants a dense input.
        query = F.linear(features, weights[0], biases[0])
        key, value = F.linear(features, weights[1], biases[1]).split(
            (self.key_dim, self.value_dim), dim=2)
        query = query.view(windows, self.window_size, self.window_size, self.key_dim)
        query = self.query_conv[head](query.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        attention = query @ key.transpose(1, 2) + self.attention_biases[head]
        return attention.softmax(dim=-1) @ value
