"""Datasets in the layouts that MMDetection and MMSegmentation read.

`generate_coco` and `generate_ade` draw small datasets from a seed, to try a whole training without
a download. Their code is in `synthetic`; the command `evit-mm data shapes` calls them.
`check_dataset` finds faults in a dataset; `evit-mm data check` calls it.
"""

from .check import CocoSource, DatasetCheck, check_dataset
from .synthetic.generate import PreparedData, generate_ade, generate_coco
from .synthetic.scenes import SCENE_CLASSES
from .synthetic.shapes import SHAPE_CLASSES

__all__ = ['SCENE_CLASSES', 'SHAPE_CLASSES', 'CocoSource', 'DatasetCheck', 'PreparedData',
           'check_dataset', 'generate_ade', 'generate_coco']
