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
from ..models.layers import ConvNorm, DepthwiseConvNorm, FeedForward

__all__ = ['FoldedAttention', 'FoldedBlock', 'FoldedDownsample', 'FoldedFeedForward', 'is_folded']


def is_folded(layer: Any) -> bool:
    """Return whether a `ConvNorm` has its BN folded into the convolution."""
    return isinstance(layer.norm, nn.Identity)


class FoldedFeedForward(nn.Module):
    """A `FeedForward` as two matrix products on maps with their channels last.

    Args:
        feed_forward: A layer whose convolutions are folded already.
    """

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.expand = feed_forward.expand
        self.project = feed_forward.project

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = x.permute(0, 2, 3, 1)
        expand, project = self.expand.conv, self.project.conv
        x = F.relu(F.linear(x, expand.weight.flatten(1), expand.bias))
        return F.linear(x, project.weight.flatten(1), project.bias).permute(0, 3, 1, 2)


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
            _fold_identity(layer.conv)
            folded.append(name)
    return tuple(folded)


@torch.no_grad()
def _fold_identity(conv: nn.Conv2d) -> None:
    """Change the kernels of a depthwise convolution so that they compute ``x + conv(x)``."""
    conv.weight[:, :, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] += 1


class FoldedAttention(nn.Module):
    """A `CascadedGroupAttention` as matrix products on tokens with their channels last.

    The scale of the softmax is part of the query's convolution, and the biases are gathered.

    Args:
        attention: An attention layer whose convolutions are folded already.

    Attributes:
        any_size: Whether a traced module must work for maps of any size. If not, windows are cut
            by reshaping, which runtimes do faster.
    """

    def __init__(self, attention: CascadedGroupAttention) -> None:
        super().__init__()
        self.any_size = True
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
        to_tokens, to_map = (_to_tokens, _to_map) if self.any_size else (
            _reshape_to_tokens, _reshape_to_map)
        tokens = to_tokens(x, self.window_size)
        outputs: list[Tensor] = []
        for head, features in enumerate(tokens.split(self.value_dim, dim=2)):
            if outputs:
                features = features + outputs[-1]
            outputs.append(self._attend(head, features))
        x = to_map(torch.cat(outputs, dim=2), self.window_size, like=x)
        return self.proj(F.relu(x))

    def _attend(self, head: int, features: Tensor) -> Tensor:
        """Map a head's tokens (windows, N, value_dim) to the same shape."""
        qkv: Any = self.qkv[head]
        sizes = (self.key_dim, self.key_dim + self.value_dim)
        weights = qkv.conv.weight.flatten(1).split(sizes)
        biases = qkv.conv.bias.split(sizes)
        # The query apart, because its convolution wants a dense input.
        query = F.linear(features, weights[0], biases[0])
        key, value = F.linear(features, weights[1], biases[1]).split(
            (self.key_dim, self.value_dim), dim=2)
        query = query.unflatten(1, (self.window_size, self.window_size))
        query = self.query_conv[head](query.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        attention = torch.baddbmm(self.attention_biases[head], query, key.transpose(1, 2))
        return attention.softmax(dim=-1) @ value


# The next two are written with operations whose sizes torch.export can bound: splitting a dimension
# with `view`, or merging two of them, asks about sizes in ways that it can't answer in general.


def _to_tokens(x: Tensor, window_size: int) -> Tensor:
    """Map (B, C, H, W) to the tokens of its zero-padded windows, (B * rows * columns, S * S, C)."""
    batch, channels, height, width = x.shape
    more = window_size - 1  # unfolding drops what does not fill a window
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, more, 0, more))
    x = x.reshape(batch, height + more, width + more, channels)  # the older exporter forgets sizes
    x = x.unfold(1, window_size, window_size).unfold(2, window_size, window_size)
    return x.permute(0, 1, 2, 4, 5, 3).flatten(3, 4).flatten(0, 2)


def _to_map(tokens: Tensor, window_size: int, like: Tensor) -> Tensor:
    """Undo `_to_tokens`: the map has the batch and size of ``like``, and its channels last."""
    batch, _, height, width = like.shape
    channels = tokens.shape[2]
    rows, columns = (height - 1) // window_size + 1, (width - 1) // window_size + 1
    x = tokens.unflatten(0, (batch, rows, columns)).unflatten(3, (window_size, window_size))
    x = x.transpose(2, 3).flatten().view(
        batch * rows * window_size, columns * window_size * channels)
    x = x.unfold(1, channels, channels).unflatten(0, (batch, rows * window_size))
    x = F.pad(x, (0, 0, 0, width - columns * window_size, 0, height - rows * window_size))  # crops
    return x.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _reshape_to_tokens(x: Tensor, window_size: int) -> Tensor:
    """Do what `_to_tokens` does, for a size that is known."""
    batch, channels, height, width = x.shape
    rows, columns = (height - 1) // window_size + 1, (width - 1) // window_size + 1
    x = F.pad(x.permute(0, 2, 3, 1),
              (0, 0, 0, columns * window_size - width, 0, rows * window_size - height))
    x = x.reshape(batch, rows, window_size, columns, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size ** 2, channels)


def _reshape_to_map(tokens: Tensor, window_size: int, like: Tensor) -> Tensor:
    """Do what `_to_map` does, for a size that is known."""
    batch, channels, height, width = like.shape
    rows, columns = (height - 1) // window_size + 1, (width - 1) // window_size + 1
    x = tokens.reshape(batch, rows, columns, window_size, window_size, channels).transpose(2, 3)
    x = x.reshape(batch, rows * window_size, columns * window_size, channels)
    return x[:, :height, :width].permute(0, 3, 1, 2)
