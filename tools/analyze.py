#!/usr/bin/env python3
"""Run the analyses of the EfficientViT paper; see `--help`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from evit_mm.cli import run_tool
    from evit_mm.cli.analyze import DESCRIPTION, add_arguments, run
except ImportError as error:  # names the package that is missing
    sys.exit(f'error: {error}')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(prog='analyze.py', description=DESCRIPTION)
    add_arguments(parser)
    sys.exit(run_tool(parser, run))
