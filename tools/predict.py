#!/usr/bin/env python3
"""Predict pictures and videos; `--help` lists the flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evit_mm.cli.main import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('predict'))
