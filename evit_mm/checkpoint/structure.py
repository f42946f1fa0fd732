"""Infer layout, variant and window sizes of weights from the names and shapes of tensors alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..arch import ARCHS
from .key_maps import LAYOUTS, Layout

__all__ = ['Structure', 'backbone_names', 'classifier_names', 'describe_weights', 'find_prefixes',
           'infer_structure', 'variant_of']

_MAX_STAGES = 3
_STEM = 'stem.0.conv.weight'
_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


@dataclass(frozen=True)
class Structure:
    """Structure of the backbone to which a state dict belongs.

    Attributes:
        layout: The layout of its keys.
        fused: Whether it is an export with BN folded into the convolutions.
        embed_dims: Channels, per stage.
        depths: Number of blocks, per stage.
        num_heads: Number of heads, per stage.
        key_dims: Channels of a head's query, per stage.
        kernel_sizes: Side of the query convolution's kernel, per head of the stage with the most
            heads.
        window_sizes: Side of the windows, per stage; 0 if the bias table is not square.
    """

    layout: Layout
    fused: bool
    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    key_dims: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    window_sizes: tuple[int, ...]


def infer_structure(state: Mapping[str, Any]) -> Structure | None:
    """Return the structure of a backbone, or None if the weights are not of an EfficientViT.

    Args:
        state: Objects with a ``shape``, by keys of one of `LAYOUTS` without a prefix.
    """
    for layout in LAYOUTS:
        structure = _read_structure(state, layout, layout.published_key, fused=False)
        if structure is None and layout.fused:
            structure = _read_structure(state, layout, _fused_key(layout), fused=True)
        if structure:
            return structure
    return None


def _fused_key(layout: Layout) -> Callable[[str], str]:
    assert layout.fused is not None
    fused = layout.fused
    return lambda name: fused(layout.published_key(name))


def _read_structure(state: Mapping[str, Any], layout: Layout, key: Callable[[str], str], *,
                    fused: bool) -> Structure | None:
    def shape(name: str) -> tuple[int, ...]:
        tensor = state.get(key(name))
        return tuple(tensor.shape) if tensor is not None else ()

    stages: list[dict[str, Any]] = []
    for stage in range(_MAX_STAGES):
        attention = f'stages.{stage}.blocks.{{}}.attn.'
        depth = 0
        while shape(attention.format(depth) + 'proj.conv.weight'):
            depth += 1
        if not depth:
            break
        first = attention.format(0)
        kernels: list[tuple[int, ...]] = []
        while query := shape(f'{first}query_conv.{len(kernels)}.conv.weight'):
            kernels.append(query)
        biases = shape(f'{first}attention_biases')
        side = round(biases[1] ** 0.5) if len(biases) == 2 else 0
        stages.append(dict(
            embed_dims=shape(f'{first}proj.conv.weight')[0], depths=depth, num_heads=len(kernels),
            key_dims=kernels[0][0] if kernels else 0,
            window_sizes=side if biases and side ** 2 == biases[1] else 0,
            kernels=tuple(kernel[-1] for kernel in kernels)))
    if not stages:
        return None
    lists = {name: tuple(stage[name] for stage in stages) for name in stages[0]}
    return Structure(layout, fused, kernel_sizes=max(lists.pop('kernels'), key=len), **lists)


def describe_weights(state: Mapping[str, Tensor]) -> str:
    """Describe the variant and layout of a backbone's state dict, such as 'm4 in the timm layout'.

    Returns:
        str: 'another model' if it is not an EfficientViT.
    """
    structure = infer_structure(state)
    if structure is None:
        return 'another model'
    name = variant_of(structure) or f'a custom variant with embed_dims={structure.embed_dims}'
    return f'{name} in the {structure.layout.name} layout'


def variant_of(structure: Structure) -> str | None:
    """Return the name of the published variant, ``'m0'`` to ``'m5'``, or None for any other.

    Weights without the last stages count as the variant whose first stages they are.
    """
    stages = len(structure.depths)
    for name, arch in ARCHS.items():
        heads = arch.num_heads[:stages]
        if (structure.embed_dims, structure.depths, structure.num_heads, structure.key_dims,
                structure.kernel_sizes) == (
                arch.embed_dims[:stages], arch.depths[:stages], heads, arch.key_dims[:stages],
                arch.kernel_sizes[:max(heads)]):
            return name
    return None


def find_prefixes(state: Mapping[str, Any]) -> list[str]:
    """Return the key prefix of every backbone in a state dict, such as ``['backbone.']``."""
    prefixes = []
    for layout in LAYOUTS:
        names = {layout.published_key(_STEM)}
        if layout.fused:
            names.add(_fused_key(layout)(_STEM))
        for name in names:
            prefixes += [key.removesuffix(name) for key in state
                         if key == name or key.endswith(f'.{name}')]
    return sorted(set(prefixes))


def backbone_names(depths: Sequence[int], num_heads: Sequence[int]) -> list[str]:
    """Return our names of a backbone's tensors, without building the backbone.

    Args:
        depths: Number of blocks, per stage.
        num_heads: Number of heads, per stage.
    """
    def conv_norm(path: str) -> Iterator[str]:
        yield f'{path}.conv.weight'
        for tensor in _NORM:
            yield f'{path}.norm.{tensor}'

    def half_sandwich(path: str, number: int) -> Iterator[str]:
        for module in (f'dw_conv{number}', f'ffn{number}.expand', f'ffn{number}.project'):
            yield from conv_norm(f'{path}.{module}')

    names: list[str] = []
    for layer in range(4):
        names += conv_norm(f'stem.{layer}')
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        if stage:
            path = f'stages.{stage}.downsample'
            names += [*half_sandwich(path, 1), *half_sandwich(path, 2)]
            for step in ('expand', 'depthwise', 'project'):
                names += conv_norm(f'{path}.merging.{step}')
            names += [f'{path}.merging.squeeze_excite.{fc}.{tensor}'
                      for fc in ('reduce', 'expand') for tensor in ('weight', 'bias')]
        for block in range(depth):
            path = f'stages.{stage}.blocks.{block}'
            names += [*half_sandwich(path, 1), *half_sandwich(path, 2)]
            names.append(f'{path}.attn.attention_biases')
            names += conv_norm(f'{path}.attn.proj')
            for head in range(heads):
                names += conv_norm(f'{path}.attn.qkv.{head}')
                names += conv_norm(f'{path}.attn.query_conv.{head}')
    return names


def classifier_names() -> list[str]:
    """Return our names of the ImageNet classifier's tensors, which only converted files contain."""
    return ([f'head.norm.{tensor}' for tensor in _NORM]
            + ['head.linear.weight', 'head.linear.bias'])
