"""Checks of datasets: faults found, counted, and repaired where there is one possible meaning."""

from .coco import CocoCheck, check_coco, read_coco
from .dataset import CocoSource, DatasetCheck, SplitCheck, check_dataset, check_source
from .findings import Finding, Findings, Severity
from .image_headers import ImageHeader, read_header, read_headers
from .masks import LabelCounts, MasksCheck, check_labels, check_masks, check_orientations

__all__ = ['CocoCheck', 'CocoSource', 'DatasetCheck', 'Finding', 'Findings', 'ImageHeader',
           'LabelCounts', 'MasksCheck', 'Severity', 'SplitCheck', 'check_coco', 'check_dataset',
           'check_labels', 'check_masks', 'check_orientations', 'check_source', 'read_coco',
           'read_header', 'read_headers']
