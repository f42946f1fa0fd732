"""Tensors inside nested lists, tuples and mappings."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ['tensors_in']


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested structure, in order; other values are skipped."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from tensors_in(value)
