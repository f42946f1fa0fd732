"""Flags that all analyses have."""

import argparse
from pathlib import Path
from typing import Any

__all__ = ['add_common_arguments', 'common_keywords']


def add_common_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add --out, --overwrite, --device, --threads and --seed.

    Args:
        parser: The parser of the analysis.
        name: Name of the analysis, which is the name of its folder and files.
    """
    group = parser.add_argument_group('results and machine')
    group.add_argument('--out', type=Path, default=Path('work_dirs', 'analysis', name),
                       metavar='DIR',
                       help=f'folder of {name}.json, {name}.png and other results; results of an '
                       f'earlier run are reused (work_dirs/analysis/{name})')
    group.add_argument('--overwrite', action='store_true',
                       help='discard the results of an earlier run in DIR')
    group.add_argument('--device', default='cpu', help='device name, as in torch (cpu)')
    group.add_argument('--threads', type=int, metavar='N',
                       help='number of CPU threads (torch\'s default)')
    group.add_argument('--seed', type=int, default=0, help='random seed (0)')


def common_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the flags of `add_common_arguments`, as keywords of an analysis."""
    return dict(out=args.out, overwrite=args.overwrite, device=args.device, threads=args.threads,
                seed=args.seed)
