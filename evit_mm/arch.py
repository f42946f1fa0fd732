"""The variants of EfficientViT (table 2 of the paper); imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from .errors import ConfigError

__all__ = ['ARCHS', 'NUM_STAGES', 'STAGE_STRIDES', 'STEM_STRIDES', 'Arch']

STEM_STRIDES = (2, 4, 8, 16)
STAGE_STRIDES = (16, 32, 64)
NUM_STAGES = len(STAGE_STRIDES)


_NUMBERS = ('ffn_ratio', 'num_ffns', 'num_attentions')  # fields of Arch that need not be lists


@dataclass(frozen=True)
class Arch:
    """A variant's sizes, per stage unless noted otherwise.

    Attributes:
        embed_dims: Channels.
        depths: Blocks.
        num_heads: Heads of the attention; each must divide its stage's channels.
        key_dims: Channels of each head's query and key.
        kernel_sizes: Side of the query's depthwise kernel, per head, shared by the stages.
        ffn_ratio: Hidden channels of the feed-forward layers over ``embed_dims``; one number, or
            one per stage. A layer next to the downsampling has the ratio of the stage with its
            width.
        num_ffns: Pairs of depthwise conv and feed-forward layer on each side of the attention; one
            number. With 0 there are none next to the downsampling either.
        num_attentions: Attention layers of a block; one number.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    key_dims: tuple[int, ...] = (16, 16, 16)
    kernel_sizes: tuple[int, ...] = (7, 5, 3, 3)
    ffn_ratio: float | tuple[float, ...] = 2
    num_ffns: int = 1
    num_attentions: int = 1

    @property
    def ffn_ratios(self) -> tuple[float, ...]:
        """``ffn_ratio`` of each stage."""
        return (self.ffn_ratio if isinstance(self.ffn_ratio, tuple)
                else (self.ffn_ratio,) * NUM_STAGES)

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden channels of the feed-forward layers, per stage."""
        return tuple(int(dims * ratio)
                     for dims, ratio in zip(self.embed_dims, self.ffn_ratios, strict=True))

    def __post_init__(self) -> None:
        for name in ('embed_dims', 'depths', 'num_heads', 'key_dims'):
            values = getattr(self, name)
            if len(values) != NUM_STAGES or any(value < 1 for value in values):
                raise ConfigError(f'arch: {name}={values} must be {NUM_STAGES} positive numbers, '
                                  'one per stage')
        for channels, heads in zip(self.embed_dims, self.num_heads, strict=True):
            if channels % heads:
                raise ConfigError(f'arch: embed_dims={self.embed_dims} must be divisible by '
                                  f'num_heads={self.num_heads}, but {heads} does not divide '
                                  f'{channels}')
        if self.embed_dims[0] % 8:
            raise ConfigError(f'arch: embed_dims[0]={self.embed_dims[0]} must be a multiple of 8, '
                              'because the stem starts with an eighth of it')
        if len(self.kernel_sizes) < max(self.num_heads):
            raise ConfigError(f'arch: kernel_sizes={self.kernel_sizes} has fewer entries than the '
                              f'largest of num_heads={self.num_heads}')
        if any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ConfigError(f'arch: kernel_sizes={self.kernel_sizes} must be odd numbers')
        if len(self.ffn_ratios) != NUM_STAGES or not all(
                isinstance(ratio, int | float) and isfinite(ratio) for ratio in self.ffn_ratios):
            raise ConfigError(f'arch: ffn_ratio={self.ffn_ratio!r} must be one number, or '
                              f'{NUM_STAGES} of them, one per stage')
        if min(self.hidden_dims) < 1:
            raise ConfigError(f'arch: ffn_ratio={self.ffn_ratio!r} must be positive, and leave '
                              'every stage a hidden channel')
        for name in ('num_ffns', 'num_attentions'):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ConfigError(f'arch: {name}={value!r} must be a whole number, 0 or more')
        if not self.num_ffns and not self.num_attentions:
            raise ConfigError('arch: num_ffns and num_attentions are both 0, which leaves the '
                              'blocks nothing')

    @classmethod
    def of(cls, arch: 'str | Mapping[str, Any] | Arch') -> 'Arch':
        """Return the architecture of a variant's name or of a dict with the fields of `Arch`.

        Raises:
            ConfigError: If the name or a field is unknown, missing or of another type.
        """
        if isinstance(arch, cls):
            return arch
        if isinstance(arch, str):
            if arch.lower() not in ARCHS:
                raise ConfigError(f'arch={arch!r} is unknown: choose one of {", ".join(ARCHS)}, '
                                  'or give a dict with embed_dims, depths and num_heads')
            return ARCHS[arch.lower()]
        if not isinstance(arch, Mapping):
            raise ConfigError(f'arch={arch!r} must be one of {", ".join(ARCHS)}, or a dict')
        known = list(cls.__dataclass_fields__)
        unknown = [key for key in arch if key not in known]
        missing = [key for key in known[:3] if key not in arch]
        if unknown or missing:
            raise ConfigError(f'arch={dict(arch)!r}: unknown keys {unknown}, missing keys '
                              f'{missing}; the keys are {known}, the first three are needed')
        for key, value in arch.items():
            if key not in _NUMBERS and not (isinstance(value, list | tuple) and all(
                    isinstance(number, int) for number in value)):
                raise ConfigError(f'arch: {key}={value!r} must be a list of whole numbers')
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                  for key, value in arch.items()}
        return cls(**fields)


_M4 = Arch(embed_dims=(128, 256, 384), depths=(1, 2, 3), num_heads=(4, 4, 4))

ARCHS: dict[str, Arch] = {
    # The published detection code gives M0 the kernels of the others, which its own weights
    # do not fit; these are the ones that it was trained with.
    'm0': replace(_M4, embed_dims=(64, 128, 192), kernel_sizes=(5, 5, 5, 5)),
    'm1': replace(_M4, embed_dims=(128, 144, 192), num_heads=(2, 3, 3)),
    'm2': replace(_M4, embed_dims=(128, 192, 224), num_heads=(4, 3, 2)),
    'm3': replace(_M4, embed_dims=(128, 240, 320), num_heads=(4, 3, 4), kernel_sizes=(5, 5, 5, 5)),
    'm4': _M4,
    'm5': replace(_M4, embed_dims=(192, 288, 384), depths=(1, 3, 4), num_heads=(3, 3, 4)),
}
"""Table 2 of the paper: the published variants."""
