"""Cascaded group attention inside windows (section 3.2 of the paper)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deployment.fuse import deploy_layers
from . import onednn
from .derived import Derived
from .layers import ConvNorm, DepthwiseConvNorm

__all__ = ['CascadedGroupAttention', 'partition_windows', 'relative_position_index',
           'reverse_windows']


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for every pair of a window's tokens.

    A table has one entry per (|dy|, |dx|), row-major.

    Returns:
        Tensor: (N, N) int64 with N = window_size ** 2.
    """
    position = torch.arange(window_size)
    distance = (position[:, None] - position).abs()
    index = distance[:, None, :, None] * window_size + distance[None, :, None, :]
    return index.reshape(window_size ** 2, window_size ** 2)


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut a map into windows, zero padded on the right and bottom to a multiple of the window.

    The padding is not masked in the attention: the published weights were trained that way.

    Args:
        x: (B, C, H, W).
        window_size: Side S of a window.

    Returns:
        Tensor: (B * ceil(H / S) * ceil(W / S), C, S, S).
    """
    batch, channels, height, width = x.shape
    size = window_size
    pad_bottom, pad_right = -height % size, -width % size
    if pad_bottom or pad_right:
        x = F.pad(x, (0, pad_right, 0, pad_bottom))
    rows, columns = (height + pad_bottom) // size, (width + pad_right) // size
    if rows == columns == 1:
        return x
    x = x.view(batch, channels, rows, size, columns, size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch * rows * columns, channels, size, size)


def reverse_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `partition_windows` and cut the padding off.

    Args:
        windows: (B * rows * columns, C, S, S).
        height: Rows of the map before padding.
        width: Columns of the map before padding.

    Returns:
        Tensor: (B, C, height, width).
    """
    total, channels, size, _ = windows.shape
    rows, columns = -(-height // size), -(-width // size)
    if rows != 1 or columns != 1:
        batch = total // (rows * columns)
        windows = windows.view(batch, rows, columns, channels, size, size)
        windows = windows.permute(0, 3, 1, 4, 2, 5)
        windows = windows.reshape(batch, channels, rows * size, columns * size)
    return windows[:, :, :height, :width]


def _window_tokens(x: Tensor, size: int) -> Tensor:
    """Cut (B, C, H, W) into (windows, S * S, C), padded as by `partition_windows`."""
    batch, channels, height, width = x.shape
    maps = x.permute(0, 2, 3, 1)
    pad_bottom, pad_right = -height % size, -width % size
    if pad_bottom or pad_right:
        maps = F.pad(maps, (0, 0, 0, pad_right, 0, pad_bottom))
    rows, columns = (height + pad_bottom) // size, (width + pad_right) // size
    maps = maps.reshape(batch, rows, size, columns, size, channels)
    return maps.transpose(2, 3).reshape(batch * rows * columns, size * size, channels)


def _map_of_tokens(tokens: Tensor, size: int, like: Tensor) -> Tensor:
    """Undo `_window_tokens`, to the batch and size of ``like``."""
    batch, _, height, width = like.shape
    rows, columns = -(-height // size), -(-width // size)
    maps = tokens.view(batch, rows, columns, size, size, -1).transpose(2, 3)
    maps = maps.reshape(batch, rows * size, columns * size, -1)
    return maps[:, :height, :width].permute(0, 3, 1, 2)


_CONSTANTS = ('query_matrices', 'query_shifts', 'shift')
"""Buffers of the deployed form; see `CascadedGroupAttention._derive_constants`."""

_MOST_TOKENS = 64
"""Tokens of the largest window whose convolutions are matrices: their size is its square."""


class CascadedGroupAttention(nn.Module):
    """Attention whose heads each see their own split of the channels, one after the other.

    Head i works on its C / heads channels plus the output of head i - 1. Queries pass a depthwise
    convolution inside the window, zero padded at the window's border.

    Args:
        embed_dims: Channels C; a multiple of ``num_heads``.
        num_heads: Number of heads.
        key_dim: Channels of each head's query and key.
        window_size: Side of the windows.
        kernel_sizes: Side of each head's query kernel; at least ``num_heads`` odd numbers.
        norm_cfg: The normalisation, in mmcv's form.
    """

    bias_index: Tensor
    query_matrices: Tensor
    query_shifts: Tensor
    shift: Tensor

    def __init__(self, embed_dims: int, num_heads: int, key_dim: int, window_size: int,
                 kernel_sizes: Sequence[int], *, norm_cfg: dict) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.value_dim = embed_dims // num_heads
        self.key_dim = key_dim
        self.scale = key_dim ** -0.5
        self.deployed = False
        self.qkv = nn.ModuleList(
            ConvNorm(self.value_dim, 2 * key_dim + self.value_dim, norm_cfg=norm_cfg)
            for _ in range(num_heads))
        self.query_conv = nn.ModuleList(
            DepthwiseConvNorm(key_dim, kernel_size, norm_cfg=norm_cfg)
            for kernel_size in kernel_sizes[:num_heads])
        self.proj = ConvNorm(embed_dims, embed_dims, norm_cfg=norm_cfg, zero_init=True)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size ** 2))
        # A buffer, so that it follows the module's device; not saved, as it is no weight.
        self.register_buffer('bias_index', relative_position_index(window_size), persistent=False)
        for name in _CONSTANTS:
            self.register_buffer(name, None, persistent=False)
        self._derived: Derived[None] = Derived()
        self.register_load_state_dict_post_hook(lambda module, _: module._derive_constants())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) of any height and width to the same shape."""
        if self._folds:
            return self._forward_as_matmuls(x)
        height, width = x.shape[2:]
        windows = partition_windows(x, self.window_size)
        biases = self._biases()
        outputs: list[Tensor] = []
        for head, channels in enumerate(windows.chunk(self.num_heads, dim=1)):
            if outputs:
                channels = channels + outputs[-1]
            query, key, value = self.qkv[head](channels).split(
                (self.key_dim, self.key_dim, self.value_dim), dim=1)
            query = self.query_conv[head](query)
            if query.requires_grad and len(query) == 1:
                # On a CPU, BN takes the gradient of a single image wrong if that is a transposed
                # view, as this one's is (seen in torch 2.11).
                query.register_hook(Tensor.contiguous)
            query = query.flatten(2) * self.scale
            attention = query.transpose(1, 2) @ key.flatten(2) + biases[head]
            value = value.flatten(2) @ attention.softmax(dim=-1).transpose(1, 2)
            outputs.append(value.view_as(channels))
        out = self.proj(torch.relu(torch.cat(outputs, dim=1)))
        return reverse_windows(out, height, width)

    def add_to(self, x: Tensor) -> Tensor:
        """Compute ``x + self(x)``; the deployed form does without a step of its own for it."""
        if not (self.deployed and self._folds):
            return x + self(x)
        if self._has_constants and x.device.type == 'cpu' and (
                torch.compiler.is_compiling() or onednn.usable(x, self.proj.conv.weight)):
            return self._forward_with_constants(x, add=x)
        return self._forward_as_matmuls(x, add=x)

    @property
    def _folds(self) -> bool:
        return all(layer.folds for layer in (*self.qkv, *self.query_conv))

    def _forward_as_matmuls(self, x: Tensor, *, add: Tensor | None = None) -> Tensor:
        """The same with channels last and BN folded: few copies, and no map in another layout.

        The projection follows on the map, without the tokens of the padding.
        """
        size = self.window_size
        tokens = _window_tokens(x, size)
        windows, per_window, _ = tokens.shape
        biases, scale = self._biases(), 1 if self.deployed else self.scale
        outputs: list[Tensor] = []
        for head, features in enumerate(tokens.split(self.value_dim, dim=2)):
            if outputs:
                features = features + outputs[-1]
            layer: Any = self.qkv[head]
            weight, bias = layer.folded()
            # Apart from key and value, as the convolution wants its input dense.
            sizes = (self.key_dim, self.key_dim + self.value_dim)
            query_weight, weight = weight.flatten(1).split(sizes)
            query_bias, bias = (None, None) if bias is None else bias.split(sizes)
            features = features.flatten(0, 1)
            query = F.linear(features, query_weight, query_bias)
            key, value = F.linear(features, weight, bias).view(windows, per_window, -1).split(
                (self.key_dim, self.value_dim), dim=2)
            query = self._convolve_query(head, query.view(windows, size, size, self.key_dim))
            attention = torch.baddbmm(biases[head].expand(windows, per_window, per_window),
                                      query.reshape(windows, per_window, self.key_dim),
                                      key.transpose(1, 2), alpha=scale).softmax(dim=-1)
            outputs.append(attention @ value)
        maps = _map_of_tokens(torch.cat(outputs, dim=2), size, x)
        return self.proj(torch.relu(maps), add=add)

    def _forward_with_constants(self, x: Tensor, *, add: Tensor) -> Tensor:
        """`_forward_as_matmuls` of the deployed form, with all that can be computed beforehand.

        A head is one product that makes query, key and value, one for the query's convolution, one
        for the scores and one for the outcome.
        """
        if not torch.compiler.is_compiling():
            self._derived.get(self._folded_tensors(), self._derive_constants)
        size, dtype = self.window_size, self.shift.dtype
        tokens = _window_tokens(x.to(dtype), size)
        windows, per_window, _ = tokens.shape
        sizes = (self.key_dim, self.key_dim, self.value_dim)
        biases = self.attention_biases.to(dtype)
        matrices, shifts = (constant.split(self.key_dim)
                            for constant in (self.query_matrices, self.query_shifts))
        outputs: list[Tensor] = []
        for head, features in enumerate(tokens.split(self.value_dim, dim=2)):
            if outputs:
                features = features + outputs[-1]
            layer: Any = self.qkv[head]
            # Channels by windows by tokens, so that each channel's queries are a matrix.
            qkv = torch.mm(layer.conv.weight.flatten(1), features.flatten(0, 1).t())
            query, key, value = qkv.view(-1, windows, per_window).split(sizes)
            query = torch.baddbmm(shifts[head].expand(self.key_dim, windows, per_window),
                                  query, matrices[head])
            scores = torch.baddbmm(biases[head].expand(windows, per_window, per_window),
                                   query.permute(1, 2, 0), key.transpose(0, 1))
            outputs.append(scores.softmax(dim=-1) @ value.permute(1, 2, 0))
        out = torch.cat(outputs, dim=2).add_(self.shift).relu_()
        return self.proj(_map_of_tokens(out, size, x), add=add)

    @property
    def _has_constants(self) -> bool:
        return self.deployed and self._folds and self.window_size ** 2 <= _MOST_TOKENS

    def _folded_tensors(self) -> list[Tensor]:
        layers: list[Any] = [*self.qkv, *self.query_conv]
        return [tensor for layer in layers for tensor in (layer.conv.weight, layer.conv.bias)]

    @torch.no_grad()
    def _derive_constants(self) -> None:
        """Compute what `_forward_with_constants` needs from the folded weights.

        Each head's softmax sums to 1 over the keys. What a key's bias adds is the same for all
        keys and changes nothing; what a value's bias adds reaches every token as it is, so that it
        can be added behind all heads, and to the next head's query. Buffers, so that they move with
        the weights, and are inputs of a compiled graph; not saved.

        - ``query_matrices`` (heads * key_dim, N, N): each channel's convolution inside a window,
          zero padding included. A small convolution costs a CPU ten times its arithmetic.
        - ``query_shifts`` (heads * key_dim, 1, N): what the biases make of the query.
        - ``shift`` (C,): what the biases make of the outcome.
        """
        if not self._has_constants:
            return
        size, keys = self.window_size, self.key_dim
        qkv_convs: list[Any] = [layer.conv for layer in self.qkv]
        query_convs: list[Any] = [layer.conv for layer in self.query_conv]
        like = qkv_convs[0].weight
        spikes = torch.eye(size * size, dtype=torch.double, device=like.device)
        spikes = spikes.view(-1, 1, size, size).expand(-1, keys, -1, -1)
        matrices: list[Tensor] = []
        query_shifts: list[Tensor] = []
        shifts: list[Tensor] = []
        for conv, query_conv in zip(qkv_convs, query_convs, strict=True):
            shift = conv.bias.double()
            if shifts:  # what the head before adds to every token's value goes through this one
                shift = shift + conv.weight.flatten(1).double() @ shifts[-1]
            responses = F.conv2d(spikes, query_conv.weight.double(), padding=query_conv.padding,
                                 groups=keys)
            matrices.append(responses.flatten(2).transpose(0, 1))
            query_shifts.append((shift[:keys, None, None] * matrices[-1]).sum(1, keepdim=True)
                                + query_conv.bias.double()[:, None, None])
            shifts.append(shift[2 * keys:])
        for name, parts in zip(_CONSTANTS, (matrices, query_shifts, shifts), strict=True):
            setattr(self, name, torch.cat(parts).to(like.dtype))

    def _convolve_query(self, head: int, query: Tensor) -> Tensor:
        """Map a head's (windows, S, S, key_dim) to the same shape."""
        layer: Any = self.query_conv[head]
        weight, bias = layer.folded()
        query = F.conv2d(query.permute(0, 3, 1, 2), weight, bias, padding=layer.conv.padding,
                         groups=self.key_dim)
        return query.permute(0, 2, 3, 1)

    def _biases(self) -> Tensor:
        """(heads, N, N): what is added to every pair of a window's tokens."""
        if self.deployed:
            return self.attention_biases
        # Gathered at every call: a cached copy would go stale when weights are loaded or moved.
        return self.attention_biases[:, self.bias_index]

    def switch_to_deploy(self) -> None:
        """Fold BN and the scale of the softmax into the convolutions, and gather the biases.

        Where the normalisation is no BN, nothing changes but the biases' place.
        """
        if self.deployed:
            return
        deploy_layers(self)
        with torch.no_grad():
            biases = self.attention_biases[:, self.bias_index].contiguous()
            layers: list[Any] = [layer for layer in self.query_conv if layer.folds]
            for layer in layers:
                layer.conv.weight *= self.scale
                layer.conv.bias *= self.scale
        self.attention_biases = nn.Parameter(biases, requires_grad=False)
        self.deployed = True
        self._derive_constants()
