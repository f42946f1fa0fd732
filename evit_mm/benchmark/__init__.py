"""Benchmark of networks in several forms, which take turns in one run.

`networks` builds the networks, `forms` prepares them, `measure` measures them with `timing`,
`memory`, `flops` and `roofline`, `report` and `plot` show the results; `run` has `benchmark`, which
calls them in this order, and `suite` has `benchmark_gpu`, a table for a GPU.
"""

from .measure import Row
from .run import benchmark
from .suite import benchmark_gpu

__all__ = ['Row', 'benchmark', 'benchmark_gpu']
