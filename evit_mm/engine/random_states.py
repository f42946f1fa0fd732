"""States of the random number generators that augmentations and dropout draw from."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ['capture_random_states', 'plain_states', 'restore_random_states']


def capture_random_states(*, cuda: bool = True) -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators in this process.

    Args:
        cuda: Whether to include the GPU's; a worker of a dataloader must not touch it.

    Returns:
        dict: Arrays and numbers, which travel between processes at little cost.
    """
    _, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    states: dict[str, Any] = dict(
        python=np.array(words, dtype=np.uint32), python_gauss=gauss,
        numpy=legacy['state']['key'], numpy_position=int(legacy['state']['pos']),
        numpy_has_gauss=int(legacy['has_gauss']), numpy_gauss=float(legacy['gauss']),
        torch=torch.get_rng_state().numpy())
    if cuda and torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state().numpy()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set the generators of this process to states of `capture_random_states`.

    Args:
        states: Arrays, or the tensors that `plain_states` makes of them.
    """
    arrays = {name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
              for name, value in states.items()}
    random.setstate((3, tuple(int(word) for word in arrays['python']), arrays['python_gauss']))
    np.random.set_state(dict(
        bit_generator='MT19937', has_gauss=arrays['numpy_has_gauss'], gauss=arrays['numpy_gauss'],
        state=dict(key=arrays['numpy'].astype(np.uint32), pos=arrays['numpy_position'])))
    torch.set_rng_state(torch.from_numpy(arrays['torch'].astype(np.uint8)))
    if 'cuda' in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(arrays['cuda'].astype(np.uint8)))


def plain_states(value: Any) -> Any:
    """Return states as a checkpoint keeps them: tensors, numbers, lists and dicts."""
    if isinstance(value, np.ndarray):
        # torch has no operations on 32-bit words without a sign.
        return torch.from_numpy(value.astype(np.uint8 if value.dtype == np.uint8 else np.int64))
    if isinstance(value, Mapping):
        return {key: plain_states(item) for key, item in value.items()}
    return [plain_states(item) for item in value] if isinstance(value, list | tuple) else value
