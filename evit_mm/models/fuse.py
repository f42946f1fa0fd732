"""Keeps the name `evit_mm.models.fuse.deploy` working; see `evit_mm.deployment`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ['deploy']


def deploy(model: 'nn.Module') -> 'nn.Module':
    """Fold what inference does not need, in place; see `evit_mm.deployment.deploy`."""
    from ..deployment.fuse import deploy

    return deploy(model)
