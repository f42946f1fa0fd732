#!/usr/bin/env python3
"""Look into files of weights, or write them in another layout; `--help` lists the flags."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.cli import run_tool
    from evit_mm.cli.convert import DESCRIPTION, add_arguments, run
except ImportError as error:  # says what is missing from this Python's packages
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    add_arguments(parser)
    sys.exit(run_tool(parser, run))
