"""Training and testing with mmengine's runner."""

from .run import test, train

__all__ = ['test', 'train']
