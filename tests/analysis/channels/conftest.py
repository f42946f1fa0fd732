"""Small networks whose blocks do something: fresh ones are the identity."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from evit_mm.models import EfficientViT


def _randomised(model: nn.Module) -> nn.Module:
    """The same model in eval mode, with a BN that scales and shifts."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Gives a model BN parameters and statistics that matter, and puts it into eval mode."""
    return _randomised


@pytest.fixture
def backbone() -> EfficientViT:
    """A narrow EfficientViT of one block per stage."""
    return _randomised(EfficientViT(arch=dict(
        embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2), key_dims=(8, 8, 8))))


class Squares:
    """The loss of a plain module: the mean square of its outputs."""

    def __init__(self, model: nn.Module, *inputs: torch.Tensor) -> None:
        self.model, self.inputs = model, inputs

    def batches(self):
        return iter(self.inputs)

    def loss(self, batch):
        outputs = self.model(batch)
        return sum(x.square().mean() for x in (
            outputs if isinstance(outputs, tuple) else (outputs,)))


@pytest.fixture
def squares() -> type[Squares]:
    """Makes a `LossSource` of a module and its inputs."""
    return Squares
