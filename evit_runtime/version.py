"""The version of both packages, alone in its file so that building them imports nothing."""

__version__ = '0.2.0'
