#!/usr/bin/env python3
"""Prepare a dataset for training and evaluation; `--help` lists which, and their flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.cli import prepare_data_parser, run_tool
    from evit_mm.data.prepare import prepare
except ImportError as error:  # says what is missing from this Python's packages
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    sys.exit(run_tool(prepare_data_parser(), prepare))
