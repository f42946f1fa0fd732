"""Parts of a detector or segmentor."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ['non_finite', 'parts', 'plain_model']


def plain_model(model: Any) -> Any:
    """Return the detector or segmentor inside wrappers that distribute it or augment its tests."""
    while hasattr(model, 'module'):
        model = model.module
    return model


def parts(model: nn.Module, *kinds: str) -> list[nn.Module]:
    """Return the modules whose name ends in one of ``kinds``, such as head or bbox_head."""
    matching: dict[nn.Module, None] = {}  # a set that keeps the order
    for name, module in model.named_modules():
        # By the last word of the name: a bottleneck is not a neck.
        if name.rpartition('.')[2].rpartition('_')[2] in kinds:
            matching.update(dict.fromkeys(_members(module)))
    return list(matching)


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module, or the members of a list of modules."""
    if not isinstance(module, nn.ModuleList):
        yield module
        return
    for child in module:  # of a cascade, or the auxiliary heads of a segmentor
        yield from _members(child)


def non_finite(weights: Mapping[str, Any], *, infinite: bool = True) -> list[str]:
    """Return the names of the floating-point tensors with values that are not finite.

    Args:
        weights: A state dict.
        infinite: Whether to look for infinite values too, and not for NaN alone.
    """
    return [name for name, value in weights.items()
            if isinstance(value, torch.Tensor)
            and (value.is_floating_point() or value.is_complex())
            and bool(torch.isnan(value).any() or infinite and torch.isinf(value).any())]
