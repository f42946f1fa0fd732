#!/usr/bin/env python3
"""Measure what backbones, detectors and segmentors cost; `--help` lists the flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.benchmark import benchmark
    from evit_mm.cli import benchmark_parser, run_tool
except ImportError as error:  # says what is missing from this Python's packages
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    sys.exit(run_tool(benchmark_parser(), benchmark))
