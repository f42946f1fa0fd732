"""Annotations in other formats, converted to COCO's and from it."""

from .datasets import SOURCES, TARGETS, Converted, convert_dataset
from .yolo import read_yolo

__all__ = ['SOURCES', 'TARGETS', 'Converted', 'convert_dataset', 'read_yolo']
