"""What only segmentors need; imports mmseg, so configs name it in `custom_imports`."""

import evit_mm  # noqa: F401  (registers; a config may import this module alone)

from .labels import CheckedLoadAnnotations, check_while_loading
from .metric import UnroundedIoUMetric

__all__ = ['CheckedLoadAnnotations', 'UnroundedIoUMetric', 'check_while_loading']
