"""Former module of the generators, which generated datasets name in their files.

New code imports from `evit_mm.data`.
"""

from .synthetic.generate import PreparedData, generate_ade, generate_coco
from .synthetic.scenes import SCENE_CLASSES
from .synthetic.settings import GENERATOR
from .synthetic.shapes import SHAPE_CLASSES, Instance, draw_shapes

__all__ = ['GENERATOR', 'SCENE_CLASSES', 'SHAPE_CLASSES', 'Instance', 'PreparedData',
           'draw_shapes', 'generate_ade', 'generate_coco']
