#!/usr/bin/env python3
"""Test a detector or segmentor; `--help` lists the flags."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.cli import test
    from evit_mm.cli.common import run_tool
except ImportError as error:  # says what is missing from this Python's packages
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(prog='test.py', description=test.DESCRIPTION)
    test.add_arguments(parser)
    sys.exit(run_tool(parser, test.run))
