"""Activation checkpointing: less memory for a second forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ['recompute_activations']


def recompute_activations(step: nn.Module, x: Tensor) -> Tensor:
    """Run ``step`` without keeping its activations; the backward pass runs it again.

    Non-reentrant, because the other kind breaks under DistributedDataParallel. The second run does
    not count in the running statistics of BN. torch.compile can't trace the context that this
    takes, so a compiled step with learning BN keeps its activations.
    """
    if torch.compiler.is_compiling():
        learning = any(isinstance(m, _BatchNorm) and m.training for m in step.modules())
        return step(x) if learning else checkpoint(step, x, use_reentrant=False)
    return checkpoint(step, x, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _keep_statistics(step)))


@contextmanager
def _keep_statistics(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, counter in zip(norms, momenta, counters, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counter
