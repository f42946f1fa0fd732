"""Small models with random weights in which no branch is zero and no BN is the identity."""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Model = TypeVar('Model', bound=nn.Module)

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 2), num_heads=(2, 2, 4), key_dims=(4, 4, 4))
"""An `arch` that is built and run in milliseconds."""

SMALLEST = TINY | dict(depths=(1, 1, 1), num_heads=(2, 2, 2))
"""An `arch` that torch.compile is done with in seconds."""


def randomize(model: Model, seed: int = 0) -> Model:
    """Give every BN and bias table values that folding and loading must carry over, in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, _BatchNorm | nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith('attention_biases'):
            nn.init.normal_(parameter, generator=generator)
    return model


def relative_error(outputs: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the largest difference over maps, relative to each map's largest value."""
    return max(((a.double() - b.double()).abs().max() / b.abs().max()).item()
               for a, b in zip(outputs, expected, strict=True))
