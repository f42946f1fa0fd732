"""What checks of datasets have found, in the log of a run."""

import logging
from collections.abc import Iterable

from mmengine.logging import print_log

from ...data.check import Finding, Severity

__all__ = ['log_findings']


def log_findings(findings: Iterable[Finding]) -> None:
    """Log what a run goes on after."""
    for finding in findings:
        level = logging.INFO if finding.severity in (Severity.NOTE, Severity.REPAIRED) \
            else logging.WARNING
        print_log(finding.message, logger='current', level=level)
