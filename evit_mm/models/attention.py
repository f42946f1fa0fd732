"""Cascaded group attention inside windows (section 3.2 of the paper)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvNorm, DepthwiseConvNorm

__all__ = ['CascadedGroupAttention', 'partition_windows', 'relative_position_index',
           'reverse_windows']


def relative_position_index(window_size: int) -> Tensor:
    """Return the column of the bias table for every pair of tokens in a window.

    A table has one entry per (|dy|, |dx|), in row-major order.

    Returns:
        Tensor: (N, N) int64 with N = window_size ** 2.
    """
    position = torch.arange(window_size)
    distance = (position[:, None] - position).abs()
    index = distance[:, None, :, None] * window_size + distance[None, :, None, :]
    return index.reshape(window_size ** 2, window_size ** 2)


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut a map into windows, zero-padded on the right and bottom to a multiple of the window.

    The padding is not masked in the attention: the published weights were trained that way.

    Args:
        x: (B, C, H, W).
        window_size: Side S of a window.

    Returns:
        Tensor: (B * ceil(H / S) * ceil(W / S), C, S, S).
    """
    batch, channels, height, width = x.shape
    rows, columns = _num_windows(height, window_size), _num_windows(width, window_size)
    x = F.pad(x, (0, columns * window_size - width, 0, rows * window_size - height))
    x = x.reshape(batch, channels, rows, window_size, columns, window_size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, window_size, window_size)


def reverse_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `partition_windows` and crop the padding.

    Args:
        windows: (B * rows * columns, C, S, S).
        height: Rows of the map before padding.
        width: Columns of the map before padding.

    Returns:
        Tensor: (B, C, height, width).
    """
    _, channels, size, _ = windows.shape
    rows, columns = _num_windows(height, size), _num_windows(width, size)
    x = windows.reshape(-1, rows, columns, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, channels, rows * size, columns * size)[:, :, :height, :width]


def _num_windows(length: int, window_size: int) -> int:
    # Positive operands alone: exporters round the quotients of negative ones differently.
    return (length + window_size - 1) // window_size


class CascadedGroupAttention(nn.Module):
    """Attention whose heads each see their own split of the channels, one after the other.

    Head i works on its C / heads channels plus the output of head i - 1. Queries pass a depthwise
    convolution inside the window, zero-padded at the window's border.

    Args:
        embed_dims: Channels C; a multiple of ``num_heads``.
        num_heads: Number of heads.
        key_dim: Channels of each head's query and key.
        window_size: Side of the windows.
        kernel_sizes: Side of each head's query kernel; at least ``num_heads`` odd numbers.
        norm_cfg: The normalisation, in mmcv's form.
    """

    bias_index: Tensor

    def __init__(self, embed_dims: int, num_heads: int, key_dim: int, window_size: int,
                 kernel_sizes: Sequence[int], *, norm_cfg: dict) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.value_dim = embed_dims // num_heads
        self.key_dim = key_dim
        self.scale = key_dim ** -0.5
        self.qkv = nn.ModuleList(
            ConvNorm(self.value_dim, 2 * key_dim + self.value_dim, norm_cfg=norm_cfg)
            for _ in range(num_heads))
        self.query_conv = nn.ModuleList(
            DepthwiseConvNorm(key_dim, kernel_size, norm_cfg=norm_cfg)
            for kernel_size in kernel_sizes[:num_heads])
        self.proj = ConvNorm(embed_dims, embed_dims, norm_cfg=norm_cfg, zero_init=True)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size ** 2))
        # A buffer, so that it follows the module's device; not a weight, so it is not saved.
        self.register_buffer('bias_index', relative_position_index(window_size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) of any height and width to the same shape."""
        height, width = x.shape[2:]
        windows = partition_windows(x, self.window_size)
        # Gathered in every call: a cached copy would go stale when weights are loaded or moved.
        biases = self.attention_biases[:, self.bias_index]
        outputs: list[Tensor] = []
        for head, features in enumerate(windows.chunk(self.num_heads, dim=1)):
            if outputs:
                features = features + outputs[-1]
            query, key, value = self.qkv[head](features).split(
                (self.key_dim, self.key_dim, self.value_dim), dim=1)
            query = self.query_conv[head](query).flatten(2) * self.scale
            # Keys by queries, so that the query's gradient is contiguous: torch 2.11 computes a
            # wrong gradient for a frozen BN on a CPU if the map is a single transposed window.
            attention = key.flatten(2).transpose(1, 2) @ query + biases[head]
            value = value.flatten(2) @ attention.softmax(dim=1)
            outputs.append(value.view_as(features))
        out = self.proj(F.relu(torch.cat(outputs, dim=1)))
        return reverse_windows(out, height, width)
