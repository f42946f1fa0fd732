"""Small networks whose branches are not zero, unlike those of fresh ones."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from evit_mm.models import EfficientViT


def _randomize_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def randomized() -> Callable[[nn.Module], nn.Module]:
    """Give a model random BN parameters and statistics, and set eval mode."""
    return _randomize_norms


@pytest.fixture
def backbone() -> EfficientViT:
    """A narrow EfficientViT with one block per stage."""
    return _randomize_norms(EfficientViT(arch=dict(
        embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2), key_dims=(8, 8, 8))))


class Squares:
    """Mean square of a module's outputs as its loss."""

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
    """A `LossSource` for a module and its inputs."""
    return Squares
