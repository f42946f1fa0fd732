"""The version, which evit_runtime has too."""

from evit_runtime.version import __version__

__all__ = ['__version__']
