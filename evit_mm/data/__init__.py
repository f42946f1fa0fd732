"""Data sets in the layouts that MMDetection and MMSegmentation read.

`shapes` draws a small one from a seed, so that a whole training can be tried offline.
"""

from .shapes import SCENE_CLASSES, SHAPE_CLASSES, PreparedData, generate_ade, generate_coco

__all__ = ['SCENE_CLASSES', 'SHAPE_CLASSES', 'PreparedData', 'generate_ade', 'generate_coco']
