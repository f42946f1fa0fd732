"""Backbone and neck, registered in mmengine's root registry."""

from ..arch import ARCHS, Arch
from . import contract
from .efficientvit import EfficientViT
from .efficientvit_fpn import EfficientViTFPN

contract.install()

__all__ = ['ARCHS', 'Arch', 'EfficientViT', 'EfficientViTFPN']
