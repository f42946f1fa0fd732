"""Backbone and neck, registered in mmengine's root registry."""

from . import contract
from .efficientvit import ARCHS, Arch, EfficientViT
from .efficientvit_fpn import EfficientViTFPN

contract.install()

__all__ = ['ARCHS', 'Arch', 'EfficientViT', 'EfficientViTFPN']
