"""A trained model made fast: folded, compiled, or in another precision."""

from .fuse import deploy

__all__ = ['deploy']
