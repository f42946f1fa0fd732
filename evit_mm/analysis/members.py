"""Models that differ in their share of attention layers, and come in many widths.

The share counts layers: attention / (attention + feed-forward), as the paper does.
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

from ..errors import UserError
from ..models import ARCHS, Arch, EfficientViT
from ..models.attention import CascadedGroupAttention
from ..models.layers import FeedForward
from .matching import Widths, rungs

__all__ = ['FAMILIES', 'DeiTMember', 'EfficientViTMember', 'Layers', 'Member', 'count_layers',
           'member_of']

FAMILIES = (*ARCHS, 'deit')
"""Names that `member_of` takes."""


@dataclass(frozen=True)
class Layers:
    """How many layers of each kind a model has."""

    attention: int
    feed_forward: int

    @property
    def total(self) -> int:
        """Layers of both kinds."""
        return self.attention + self.feed_forward

    @property
    def share(self) -> float:
        """Of attention layers, 0 to 1."""
        return self.attention / self.total


class Member(Protocol):
    """A model whose layers are settled and whose widths are not.

    Attributes:
        layers: How many it has.
        base: Widths to begin with.
        units: What each width must be a multiple of.
    """

    layers: Layers
    base: Widths
    units: Widths

    def ladder(self) -> list[Widths]:
        """Widths from narrow to wide."""

    def build(self, widths: Widths) -> nn.Module:
        """The model with these widths, with random weights."""

    def describe(self, widths: Widths) -> dict[str, Any]:
        """What to build it from, as JSON knows it."""


class EfficientViTMember:
    """A member of our family: a variant with other depths and numbers of layers per block.

    Args:
        arch: The architecture; its widths are where the search begins.
    """

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.layers = count_layers(arch)
        self.base: Widths = arch.embed_dims
        # Of 8 by what the processors like and the stem needs.
        self.units: Widths = tuple(lcm(8, heads) for heads in arch.num_heads)

    def ladder(self) -> list[Widths]:
        """Widths of the stages, from narrow to wide."""
        return rungs(self.base, self.units)

    def build(self, widths: Widths) -> nn.Module:
        """The backbone whose stages have these widths."""
        return EfficientViT(replace(self.arch, embed_dims=widths))

    def describe(self, widths: Widths) -> dict[str, Any]:
        """The ``arch`` that `EfficientViT` takes."""
        fields = asdict(replace(self.arch, embed_dims=widths))
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in fields.items()}


class DeiTMember:
    """A DeiT-like classifier whose layers are those of DeiT-T in number, of other kinds.

    Widths are those of the tokens, of a head, and of the feed-forward parts' hidden layer; a kind
    of layer that the member lacks has none.

    Args:
        layers: How many of each kind; those of attention are spread evenly, one comes first.
        size: Height and width of the images, multiples of 16.
    """

    def __init__(self, layers: Layers, size: tuple[int, int]) -> None:
        self.layers = layers
        self.size = size
        self._kinds = [kind for kind, number in
                       (('head', layers.attention), ('hidden', layers.feed_forward)) if number]
        self.base: Widths = (192, *({'head': 64, 'hidden': 768}[kind] for kind in self._kinds))
        self.units: Widths = (8, *({'head': 4, 'hidden': 16}[kind] for kind in self._kinds))

    def ladder(self) -> list[Widths]:
        """Widths from narrow to wide."""
        return rungs(self.base, self.units)

    def build(self, widths: Widths) -> nn.Module:
        """The classifier with these widths.

        Raises:
            UserError: If timm is missing.
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
            AttentionLayer(channels, heads, sizes['head_dim']) if attends
            else FeedForwardLayer(channels, sizes['hidden_dim'])
            for attends in self.pattern()))
        return model

    def pattern(self) -> Iterator[bool]:
        """Whether each layer is one of attention."""
        attention, total = self.layers.attention, self.layers.total
        for i in range(total):
            yield ceil((i + 1) * attention / total) > ceil(i * attention / total)

    def describe(self, widths: Widths) -> dict[str, Any]:
        """The sizes, by name."""
        found = dict(zip(self._kinds, widths[1:], strict=True))
        return {'embed_dim': widths[0], 'num_heads': 3, 'head_dim': found.get('head'),
                'hidden_dim': found.get('hidden'),
                'layers': ''.join('A' if attends else 'F' for attends in self.pattern())}


class AttentionLayer(nn.Module):
    """Half of a transformer's block: normalisation, attention of all tokens, residual."""

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
    """The other half: normalisation, two linear layers with a GELU between them, residual."""

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
    """Count the layers of a backbone, those of its downsampling included."""
    # On no device: nothing but the structure is wanted.
    with torch.device('meta'):
        modules = list(EfficientViT(arch).modules())
    return Layers(sum(isinstance(module, CascadedGroupAttention) for module in modules),
                  sum(isinstance(module, FeedForward) for module in modules))


def member_of(family: str, share: float, size: tuple[int, int]) -> Member:
    """The member of a family whose share of attention layers is nearest to ``share``.

    Args:
        family: One of `FAMILIES`.
        share: 0 to 1. Layers are whole, so that a member may be a little beside it.
        size: Height and width of the images; of DeiT-like members multiples of 16.

    Raises:
        UserError: If there is no such family, or an argument is out of range.
    """
    if family not in FAMILIES:
        raise UserError(f'--family {family} is unknown: choose one of {", ".join(FAMILIES)}')
    if not 0 <= share <= 1:
        raise UserError(f'a share of attention layers is between 0 and 1, but got {share}')
    if family != 'deit':
        return EfficientViTMember(_arch_of_share(ARCHS[family], share))
    if any(side % 16 for side in size):
        raise UserError('DeiT-like models cut images into patches of 16, but '
                        f'{size[0]} x {size[1]} is no multiple of 16')
    attention = round(24 * share)  # DeiT-T has 12 of each
    return DeiTMember(Layers(attention, 24 - attention), size)


@cache
def _arch_of_share(base: Arch, share: float) -> Arch:
    """Vary what a block has and how many there are.

    A share nearby is worth a few layers more or less than the base has, but not twice as many:
    depth must not explain what the share does. Blocks stay spread over the stages as they were.
    """
    layers = count_layers(base)

    def distance(arch: Arch) -> tuple[float, float]:
        found = _counted(arch)
        spread = sum(abs(depth / sum(arch.depths) - usual / sum(base.depths))
                     for depth, usual in zip(arch.depths, base.depths, strict=True))
        apart = abs(found.share - share) + 0.2 * abs(found.total / layers.total - 1)
        return round(apart, 2), spread

    return min(_variants(base), key=distance)


def _variants(base: Arch) -> Iterator[Arch]:
    depths = [range(1, 2 * depth + 2) for depth in base.depths]
    for num_ffns, num_attentions in product(range(4), range(7)):
        if num_ffns or num_attentions:
            for chosen in product(*depths):
                yield replace(base, depths=chosen, num_ffns=num_ffns,
                              num_attentions=num_attentions)


def _counted(arch: Arch) -> Layers:
    """`count_layers` of thousands of them, from a few that are built: all blocks are alike."""
    one = count_layers(replace(arch, depths=(1, 1, 1), num_attentions=1)).feed_forward
    two = count_layers(replace(arch, depths=(2, 1, 1), num_attentions=1)).feed_forward
    blocks = sum(arch.depths)
    return Layers(blocks * arch.num_attentions, one + (blocks - 3) * (two - one))
