"""Parts that only detectors need.

Importing this module imports mmdet, and registers the heads and, as all of `evit_mm` does, the
backbone and the neck. In a config:

    custom_imports = dict(imports=['evit_mm.detection'])
"""

from .heads import SyncedRetinaHead

__all__ = ['SyncedRetinaHead']
