"""The published model, backbone and neck, and a light neck, in mmengine's root registry."""

from ..arch import ARCHS, Arch
from .efficientvit import EfficientViT
from .efficientvit_fpn import EfficientViTFPN
from .lcpan import LCPAN

__all__ = ['ARCHS', 'LCPAN', 'Arch', 'EfficientViT', 'EfficientViTFPN']
