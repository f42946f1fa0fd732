"""Hooks around a run, one file each.

A config that names this module in ``custom_imports`` can use those that are registered:
`MeanLossHook`, `PictureHook`, `PreflightHook`, `ProgressHook`, `ReportHook`, `ResumedScheduleHook`
and `SafeCheckpointHook`.
"""

from .acceleration import AccelerationHook
from .best_checkpoint import BestCheckpointHook
from .checkpoint import SafeCheckpointHook
from .first_iteration import FirstIterationHook
from .mean_loss import MeanLossHook
from .pictures import PictureHook
from .preflight import PreflightHook
from .progress import ProgressHook
from .report import ReportHook
from .resumed_schedule import ResumedScheduleHook
from .summary import SummaryHook

__all__ = ['AccelerationHook', 'BestCheckpointHook', 'FirstIterationHook', 'MeanLossHook',
           'PictureHook', 'PreflightHook', 'ProgressHook', 'ReportHook', 'ResumedScheduleHook',
           'SafeCheckpointHook', 'SummaryHook']
