"""Parts that only segmentors need.

Importing this module imports mmseg, and registers the dataset, the transform and the metric and, as
all of `evit_mm` does, the backbone and the neck. In a config:

    custom_imports = dict(imports=['evit_mm.segmentation'])
"""

from .dataset import LabelMapDataset
from .labels import CheckedLoadAnnotations, check_while_loading
from .metric import UnroundedIoUMetric

__all__ = ['CheckedLoadAnnotations', 'LabelMapDataset', 'UnroundedIoUMetric', 'check_while_loading']
