"""The version, alone in its file so that building a package imports nothing."""

__version__ = '0.2.0'
