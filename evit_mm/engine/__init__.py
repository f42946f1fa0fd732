"""Training and testing with mmengine's runner: what happens around it, before and after."""

from .run import test, train

__all__ = ['test', 'train']
