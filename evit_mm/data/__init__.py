"""Datasets in the layouts that MMDetection and MMSegmentation read.

A small one is drawn from a seed, so that a whole training can be tried offline. Who draws:
`canvas`, `shapes`, `scenes`; who writes: `annotations`, `layouts`; whose folder it is: `settings`,
`folder`; all of it together: `generate`, and `prepare` for the command line.
"""

from .synthetic.generate import PreparedData, generate_ade, generate_coco
from .synthetic.scenes import SCENE_CLASSES
from .synthetic.shapes import SHAPE_CLASSES

__all__ = ['SCENE_CLASSES', 'SHAPE_CLASSES', 'PreparedData', 'generate_ade', 'generate_coco']
