"""Checks of datasets: faults found, counted, and repaired where there is one possible meaning."""

from .coco import CocoCheck, check_coco, read_coco
from .findings import Finding, Findings, Severity
from .image_headers import ImageHeader, read_header, read_headers

__all__ = ['CocoCheck', 'Finding', 'Findings', 'ImageHeader', 'Severity', 'check_coco', 'read_coco',
           'read_header', 'read_headers']
