#!/usr/bin/env python3
"""Test a detector or segmentor; `--help` lists the flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.cli import run_tool, test_parser
    from evit_mm.engine import test
except ImportError as error:  # says what is missing from this Python's packages
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    sys.exit(run_tool(test_parser(), test))
