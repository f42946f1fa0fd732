#!/usr/bin/env python3
"""Say where a model's time goes, which heads are alike, which channels matter; see `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.cli import run_tool
    from evit_mm.cli.analyze import analyze, analyze_parser
except ImportError as error:  # says what is missing from this Python's packages
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    sys.exit(run_tool(analyze_parser(), analyze))
