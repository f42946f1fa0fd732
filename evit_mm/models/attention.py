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

    This and `reverse_windows` are written with operations whose output sizes torch.export can
    bound, so that the sizes of an exported model may vary.

    The padding is not masked in the attention: the published weights were trained that way.

    Args:
        x: (B, C, H, W).
        window_size: Side S of a window.

    Returns:
        Tensor: (B * ceil(H / S) * ceil(W / S), C, S, S).
    """
    channels = x.shape[1]
    # Unfolding drops what does not fill a window; one row and column less than a window keep all.
    x = F.pad(x, (0, window_size - 1, 0, window_size - 1))
    x = F.unfold(x, window_size, stride=window_size)  # (B, C * S * S, windows)
    return x.transpose(1, 2).flatten(0, 1).unflatten(1, (channels, window_size, window_size))


def reverse_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `partition_windows` and crop the padding.

    Args:
        windows: (B * rows * columns, C, S, S).
        height: Rows of the map before padding.
        width: Columns of the map before padding.

    Returns:
        Tensor: (B, C, height, width).
    """
    size = windows.shape[-1]
    rows, columns = (height - 1) // size + 1, (width - 1) // size + 1
    x = windows.flatten(1).unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 2)
    x = F.pixel_shuffle(x, size)
    return F.pad(x, (0, width - columns * size, 0, height - rows * size))  # crops


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
            query = self.query_conv[head](query)
            if query.requires_grad:
                # A frozen BN of torch 2.11 computes a wrong gradient on a CPU from the transposed
                # view that arrives here if there is a single window.
                query.register_hook(Tensor.contiguous)
            query = query.flatten(2).transpose(1, 2) * self.scale
            attention = query @ key.flatten(2) + biases[head]
            value = value.flatten(2) @ attention.softmax(dim=-1).transpose(1, 2)
            outputs.append(value.view_as(features))
        out = self.proj(F.relu(torch.cat(outputs, dim=1)))
        return reverse_windows(out, height, width)
