"""Annotations in other formats, converted to COCO's and from it."""

from .coco_builder import CocoBuilder
from .yolo import read_yolo

__all__ = ['CocoBuilder', 'read_yolo']
