"""Find the state dict inside the files that training programs save.

mmengine looks only under ``state_dict``. It would load nothing from any other container, or from
keys behind another prefix, and log no more than a warning.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

__all__ = ['Weights', 'as_mmengine_expects', 'find_weights', 'strip_containers']

# In order of preference: averaged weights are what their training program evaluates, so they come
# before the plain weights in the same file. mmengine's EMAHook saves the average as 'state_dict'.
_CONTAINERS = ('state_dict_ema', 'model_ema', 'ema', 'state_dict', 'model', 'module')
_WRAPPERS = ('module.', '_orig_mod.')  # DDP and averaged models; torch.compile
_COUNTERS = ('n_averaged', 'steps')  # saved next to 'module.' by torch's and mmengine's averages
_MAX_DEPTH = 3  # of nested containers; a file may contain a container that contains itself


class Weights(NamedTuple):
    """The state dict of a checkpoint.

    Attributes:
        state: Tensors by name, without the prefixes of wrappers; numpy's numeric arrays are
            converted to tensors.
        place: Keys that lead to the state dict, such as ``('model_ema',)``; empty if the checkpoint
            itself is the state dict.
        wrappers: Prefixes that were removed, such as ``('module.',)``.
    """

    state: dict[str, Tensor]
    place: tuple[str, ...]
    wrappers: tuple[str, ...]


def find_weights(checkpoint: Any, depth: int = 0) -> Weights | None:
    """Return the weights in the content of a file, or None if it has none.

    Args:
        checkpoint: The content of the file.
        depth: Number of containers around it.
    """
    if not isinstance(checkpoint, Mapping):
        return None
    for container in _CONTAINERS if depth < _MAX_DEPTH else ():
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
    if any('._orig_mod.' in key for key in state):  # only a part of the model was compiled
        wrappers.append('_orig_mod.')
        state = {key.replace('._orig_mod.', '.'): value for key, value in state.items()}
    return Weights(state, (), tuple(wrappers))


def strip_containers(checkpoint: Any, source: str = 'the checkpoint') -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, without containers and prefixes of wrappers.

    Args:
        checkpoint: A state dict, or a dict that contains one.
        source: Its file or address, for the error.

    Raises:
        CheckpointError: If it contains no state dict.
    """
    weights = find_weights(checkpoint)
    if weights is None:
        keys = list(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else []
        raise CheckpointError(f'{source} holds no weights in any known container'
                              + f' (its keys: {", ".join(keys[:8])})' * bool(keys))
    return weights.state


def as_mmengine_expects(checkpoint: Any) -> Any:
    """Return a checkpoint with its weights under ``state_dict`` and everything else unchanged."""
    weights = find_weights(checkpoint)
    if weights is None:
        return checkpoint
    if weights.place in ((), ('state_dict',)) and not weights.wrappers:
        state = checkpoint['state_dict'] if weights.place else checkpoint
        if not any(isinstance(value, np.ndarray) for value in state.values()):
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
