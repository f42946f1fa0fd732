"""Find the weights inside what training programs save.

mmengine looks for ``state_dict`` alone. What others put around their weights, or before their
names, would be loaded as nothing, with no more than a warning.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ['Weights', 'as_mmengine_expects', 'find_weights']

# In this order: an average is what its training program evaluates, so it goes before the plain
# weights beside it. mmengine's EMAHook saves the average as 'state_dict' itself.
_CONTAINERS = ('state_dict_ema', 'model_ema', 'ema', 'state_dict', 'model', 'module')
_WRAPPERS = ('module.', '_orig_mod.')  # of DDP and averages, and of torch.compile
_COUNTERS = ('n_averaged', 'steps')  # beside 'module.' in an average of torch or mmengine
_DEEPEST = 3  # containers in one another; a file may hold one that holds itself


class Weights(NamedTuple):
    """The weights in a checkpoint.

    Attributes:
        state: Tensors by name, without what wrappers put before the names; numpy's arrays of
            numbers count as tensors.
        place: The entries of the checkpoint that lead to them: ``('model_ema',)``; empty where
            the checkpoint itself is the state dict.
        wrappers: What was taken from before the names: ``('module.',)``.
    """

    state: dict[str, Tensor]
    place: tuple[str, ...]
    wrappers: tuple[str, ...]


def find_weights(checkpoint: Any, depth: int = 0) -> Weights | None:
    """The weights in what a file holds; None where it holds none.

    Args:
        checkpoint: What the file holds.
        depth: Containers around it.
    """
    if not isinstance(checkpoint, Mapping):
        return None
    for container in _CONTAINERS if depth < _DEEPEST else ():
        inner = find_weights(checkpoint.get(container), depth + 1)
        if inner:
            return inner._replace(place=(container, *inner.place))
    state = {str(key): tensor for key, value in checkpoint.items()
             if (tensor := _as_tensor(value)) is not None}
    if not state:
        return None
    wrappers: list[str] = []
    while wrapper := _common_wrapper(state):
        wrappers.append(wrapper)
        state = {key.removeprefix(wrapper): value for key, value in state.items()
                 if key not in _COUNTERS}
    if any('._orig_mod.' in key for key in state):  # a part of the model was compiled
        wrappers.append('_orig_mod.')
        state = {key.replace('._orig_mod.', '.'): value for key, value in state.items()}
    return Weights(state, (), tuple(wrappers))


def as_mmengine_expects(checkpoint: Any) -> Any:
    """A checkpoint with its weights where mmengine finds them, and all else as it was."""
    weights = find_weights(checkpoint)
    if weights is None:
        return checkpoint
    if weights.place in ((), ('state_dict',)) and not weights.wrappers:
        held = checkpoint['state_dict'] if weights.place else checkpoint
        if not any(isinstance(value, np.ndarray) for value in held.values()):
            return checkpoint
    if not weights.place:
        return {'state_dict': weights.state, 'meta': {}}
    return {**checkpoint, 'state_dict': weights.state}


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf' and value.dtype.itemsize <= 8:
        return torch.from_numpy(value)
    return value if isinstance(value, Tensor) else None


def _common_wrapper(state: Mapping[str, Any]) -> str | None:
    names = [key for key in state if key not in _COUNTERS]
    return next((wrapper for wrapper in _WRAPPERS
                 if names and all(name.startswith(wrapper) for name in names)), None)
