"""Parts that only detectors need.

Importing this module imports mmdet, and registers the assigner, the heads, the metric and, as all
of `evit_mm` does, the backbone and the neck. In a config:

    custom_imports = dict(imports=['evit_mm.detection'])
"""

from .assigner import TaskAlignedPointAssigner
from .heads import SyncedRetinaHead
from .metric import PerClassCocoMetric

__all__ = ['PerClassCocoMetric', 'SyncedRetinaHead', 'TaskAlignedPointAssigner']
