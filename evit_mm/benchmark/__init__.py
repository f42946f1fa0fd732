"""What tools/benchmark.py does: networks in several forms, measured in one run and reported.

`networks` builds them, `forms` dresses them for measuring, `rows` measures (with
`evit_mm.benchmark.timing` and its siblings), `report` and `plot` show; `run` does one after the
other.
"""

from .run import benchmark

__all__ = ['benchmark']
