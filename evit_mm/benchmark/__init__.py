"""Benchmark of networks in several forms, which take turns in one run.

`networks` builds the networks, `forms` prepares them, `measure` measures them with `timing`,
`memory`, `flops` and `roofline`, `report` and `plot` show the results; `run` has `benchmark`, which
calls them in this order.
"""

from .measure import Row
from .run import benchmark

__all__ = ['Row', 'benchmark']
