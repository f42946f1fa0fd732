"""The precision in which operators compute."""

import torch
from torch import Tensor

__all__ = ['widen', 'working_dtype']


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which values of ``dtype`` are computed: float32 or float64.

    Half precision lacks kernels on some devices, and digits for coordinates on all.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(tensor: Tensor) -> Tensor:
    """Return a tensor in its working dtype."""
    return tensor.to(working_dtype(tensor.dtype))
