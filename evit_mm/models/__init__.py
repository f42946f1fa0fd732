"""The published model: backbone and neck, registered in mmengine's root registry."""

from ..arch import ARCHS, Arch
from .efficientvit import EfficientViT
from .efficientvit_fpn import EfficientViTFPN

__all__ = ['ARCHS', 'Arch', 'EfficientViT', 'EfficientViTFPN']
