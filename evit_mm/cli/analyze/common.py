"""The flags that all analyses have."""

import argparse
from pathlib import Path

__all__ = ['add_common_flags']


def add_common_flags(parser: argparse.ArgumentParser, name: str) -> None:
    """Add --out, --overwrite, --device, --threads and --seed.

    Args:
        parser: The analysis' parser.
        name: The analysis; the folder of its results, unless --out names another.
    """
    group = parser.add_argument_group('results and machine')
    group.add_argument('--out', type=Path, default=Path('work_dirs', 'analysis', name),
                       metavar='DIR', help=f'folder of {name}.json, {name}.png and what else there '
                       f'is (work_dirs/analysis/{name}); a repeated run goes on with what it finds '
                       'there')
    group.add_argument('--overwrite', action='store_true',
                       help='start anew, whatever an earlier run left in DIR')
    group.add_argument('--device', default='cpu', help='as torch names it (cpu)')
    group.add_argument('--threads', type=int, metavar='N', help='CPU threads (as torch chooses)')
    group.add_argument('--seed', type=int, default=0, help='seed of all random numbers (0)')
