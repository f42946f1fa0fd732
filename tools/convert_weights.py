#!/usr/bin/env python3
"""Look into files of weights, or write them in another layout; `--help` lists the flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.checkpoint.convert import convert
    from evit_mm.cli import convert_weights_parser, run_tool
except ImportError as error:  # says what is missing from this Python's packages
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    sys.exit(run_tool(convert_weights_parser(), convert))
