"""Hooks around a run, one file each.

A config that names this module in ``custom_imports`` can use those that are registered:
`MeanLossHook`, `NonFiniteHook`, `PictureHook`, `PreflightHook`, `ProgressHook`, `ReportHook`,
`ResumedScheduleHook`, `SafeCheckpointHook` and `StopSignalHook`.
"""

from .acceleration import AccelerationHook
from .best_checkpoint import BestCheckpointHook
from .checkpoint import SafeCheckpointHook
from .first_iteration import FirstIterationHook
from .mean_loss import MeanLossHook
from .non_finite import NonFiniteHook
from .pictures import PictureHook
from .preflight import PreflightHook
from .progress import ProgressHook
from .report import ReportHook
from .resumed_schedule import ResumedScheduleHook
from .stop_signals import StopSignalHook
from .summary import SummaryHook

__all__ = ['AccelerationHook', 'BestCheckpointHook', 'FirstIterationHook', 'MeanLossHook',
           'NonFiniteHook', 'PictureHook', 'PreflightHook', 'ProgressHook', 'ReportHook',
           'ResumedScheduleHook', 'SafeCheckpointHook', 'StopSignalHook', 'SummaryHook']
