"""Model families whose members differ in their share of attention layers, in many widths.

The share counts layers, as the paper does: attention / (attention + feed-forward).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from math import ceil, lcm
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arch import ARCHS, Arch
from ..errors import UserError
from ..models import EfficientViT
from ..models.attention import CascadedGroupAttention
from ..models.layers import FeedForward
from .matching import Widths, scaled_widths

__all__ = ['FAMILIES', 'DeiTMember', 'EfficientViTMember', 'Layers', 'Member', 'build_member',
           'count_layers']

FAMILIES = (*ARCHS, 'deit')
"""Names that `build_member` accepts."""


@dataclass(frozen=True)
class Layers:
    """Number of layers of each kind in a model."""

    attention: int
    feed_forward: int

    @property
    def total(self) -> int:
        """Return the number of layers of both kinds."""
        return self.attention + self.feed_forward

    @property
    def share(self) -> float:
        """Return the share of attention layers, 0 to 1."""
        return self.attention / self.total


class Member(Protocol):
    """Model with fixed layers and variable widths.

    Attributes:
        layers: Number of layers of each kind.
        base: Widths from which the search starts.
        units: The unit of each width.
    """

    layers: Layers
    base: Widths
    units: Widths

    def ladder(self) -> list[Widths]:
        """Return widths from narrow to wide."""

    def build(self, widths: Widths) -> nn.Module:
        """Build the model with these widths and random weights."""

    def describe(self, widths: Widths) -> dict[str, Any]:
        """Return what the model is built from, as JSON values."""


class EfficientViTMember:
    """EfficientViT with its own depths and layers per block.

    Args:
        arch: The architecture; the search starts from its ``embed_dims``.
    """

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.layers = count_layers(arch)
        self.base: Widths = arch.embed_dims
        # Multiples of 8 for the stem, and because processors prefer them.
        self.units: Widths = tuple(lcm(8, heads) for heads in arch.num_heads)

    def ladder(self) -> list[Widths]:
        """Return widths of the stages, from narrow to wide."""
        return scaled_widths(self.base, self.units)

    def build(self, widths: Widths) -> nn.Module:
        """Build the backbone whose stages have these widths."""
        return EfficientViT(replace(self.arch, embed_dims=widths))

    def describe(self, widths: Widths) -> dict[str, Any]:
        """Return the ``arch`` argument of `EfficientViT`."""
        fields = asdict(replace(self.arch, embed_dims=widths))
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in fields.items()}


class DeiTMember:
    """DeiT-like classifier with the number of layers of DeiT-T, but another share of attention.

    Its widths are those of the tokens, of a head, and of the hidden layer of the feed-forward
    parts; the last two are left out if the member has no such layer.

    Args:
        layers: Number of layers of each kind. The attention layers are evenly spaced, starting
            with the first layer.
        size: Height and width of the images, multiples of 16.
    """

    def __init__(self, layers: Layers, size: tuple[int, int]) -> None:
        self.layers = layers
        self.size = size
        self._inner_widths = [name for name, number in (
            ('head', layers.attention), ('hidden', layers.feed_forward)) if number]
        self.base: Widths = (192, *({'head': 64, 'hidden': 768}[name]
                                    for name in self._inner_widths))
        self.units: Widths = (8, *({'head': 4, 'hidden': 16}[name]
                                   for name in self._inner_widths))

    def ladder(self) -> list[Widths]:
        """Return widths from narrow to wide."""
        return scaled_widths(self.base, self.units)

    def build(self, widths: Widths) -> nn.Module:
        """Build the classifier with these widths.

        Raises:
            UserError: If timm is not installed.
        """
        try:
            from timm.models.vision_transformer import VisionTransformer
        except ImportError as error:
            raise UserError('DeiT-like models need timm, which is not installed: pip install timm'
                            ) from error
        sizes = self.describe(widths)
        channels, heads = sizes['embed_dim'], sizes['num_heads']
        model = VisionTransformer(img_size=self.size, embed_dim=channels, depth=0, num_heads=heads)
        model.blocks = nn.Sequential(*(
            AttentionLayer(channels, heads, sizes['head_dim']) if is_attention
            else FeedForwardLayer(channels, sizes['hidden_dim'])
            for is_attention in self.pattern()))
        return model

    def pattern(self) -> Iterator[bool]:
        """Yield for each layer whether it is an attention layer."""
        attention, total = self.layers.attention, self.layers.total
        for i in range(total):
            yield ceil((i + 1) * attention / total) > ceil(i * attention / total)

    def describe(self, widths: Widths) -> dict[str, Any]:
        """Return the sizes of the model, by name."""
        inner = dict(zip(self._inner_widths, widths[1:], strict=True))
        return {'embed_dim': widths[0], 'num_heads': 3, 'head_dim': inner.get('head'),
                'hidden_dim': inner.get('hidden'),
                'layers': ''.join('A' if is_attention else 'F' for is_attention in self.pattern())}


class AttentionLayer(nn.Module):
    """First half of a transformer block: layer norm, attention over all tokens, residual."""

    def __init__(self, channels: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to the same shape."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForwardLayer(nn.Module):
    """Second half of a transformer block: layer norm, two linear layers with GELU, residual."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, hidden_channels)
        self.project = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to the same shape."""
        return x + self.project(F.gelu(self.expand(self.norm(x))))


@cache
def count_layers(arch: Arch) -> Layers:
    """Count the layers of a backbone, including those of its downsampling."""
    with torch.device('meta'):  # only the structure matters
        modules = list(EfficientViT(arch).modules())
    return Layers(sum(isinstance(module, CascadedGroupAttention) for module in modules),
                  sum(isinstance(module, FeedForward) for module in modules))


def build_member(family: str, share: float, size: tuple[int, int]) -> Member:
    """Return the member of a family whose share of attention layers is closest to ``share``.

    Args:
        family: One of `FAMILIES`.
        share: Share of attention layers, 0 to 1; not every share is possible with whole layers.
        size: Height and width of the images; multiples of 16 for DeiT-like members.

    Raises:
        UserError: If the family is unknown, or another argument is out of range.
    """
    if family not in FAMILIES:
        raise UserError(f'--family {family} is unknown: choose one of {", ".join(FAMILIES)}')
    if not 0 <= share <= 1:
        raise UserError(f'--shares must be between 0 and 1, got {share}')
    if family != 'deit':
        return EfficientViTMember(_arch_of_share(ARCHS[family], share))
    if any(side % 16 for side in size):
        raise UserError('DeiT-like models cut images into patches of 16x16, but --shape '
                        f'{size[0]} {size[1]} is not a multiple of 16')
    attention = round(24 * share)  # DeiT-T has 12 layers of each kind
    return DeiTMember(Layers(attention, 24 - attention), size)


@cache
def _arch_of_share(base: Arch, share: float) -> Arch:
    """Return the architecture closest to a share; block contents and depths vary.

    A closer share may cost a few layers more or fewer than ``base`` has, but not twice as many:
    depth must not explain the effect of the share. Blocks keep their distribution over the stages.
    """
    layers = count_layers(base)

    def distance(arch: Arch) -> tuple[float, float]:
        own = _count_from_blocks(arch)
        depth_change = sum(abs(depth / sum(arch.depths) - usual / sum(base.depths))
                           for depth, usual in zip(arch.depths, base.depths, strict=True))
        share_change = abs(own.share - share) + 0.2 * abs(own.total / layers.total - 1)
        return round(share_change, 2), depth_change

    return min(_variants(base), key=distance)


def _variants(base: Arch) -> Iterator[Arch]:
    depth_ranges = [range(1, 2 * depth + 2) for depth in base.depths]
    for num_ffns, num_attentions in product(range(4), range(7)):
        if num_ffns or num_attentions:
            for depths in product(*depth_ranges):
                yield replace(base, depths=depths, num_ffns=num_ffns,
                              num_attentions=num_attentions)


def _count_from_blocks(arch: Arch) -> Layers:
    """Count layers like `count_layers`, but build only two small models for thousands of archs."""
    one = count_layers(replace(arch, depths=(1, 1, 1), num_attentions=1)).feed_forward
    two = count_layers(replace(arch, depths=(2, 1, 1), num_attentions=1)).feed_forward
    blocks = sum(arch.depths)
    return Layers(blocks * arch.num_attentions, one + (blocks - 3) * (two - one))
