"""The flags of tools/benchmark.py."""

import argparse
from pathlib import Path
from typing import Any

from .common import ConfigOptions

__all__ = ['benchmark_parser']


class _Variant(ConfigOptions):
    """A name and KEY=VALUE pairs; gathers one (name, options) pair per use of the flag."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        name, *pairs = values
        if '=' in name:
            parser.error(f'{option_string} starts with a name, but got {name}')
        earlier = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, {})
        super().__call__(parser, namespace, pairs, option_string)
        setattr(namespace, self.dest, [*earlier, (name, getattr(namespace, self.dest))])


def benchmark_parser() -> argparse.ArgumentParser:
    """The flags of tools/benchmark.py."""
    parser = argparse.ArgumentParser(
        prog='benchmark.py', description='Measure parameters, multiply-adds and latency of the '
        'parts of detectors and segmentors, with the weights that they start with.')
    parser.add_argument('configs', nargs='+', type=Path, metavar='CONFIG', help='config files')
    parser.add_argument('--variant', nargs='+', action=_Variant, metavar=('NAME', 'KEY=VALUE'),
                        help='measure the config with these values too; may be given repeatedly')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='change values of every config')
    parser.add_argument('--shape', nargs=2, type=int, default=(512, 512),
                        metavar=('HEIGHT', 'WIDTH'), help='size of the images (512 512)')
    parser.add_argument('--batch', type=int, default=1, help='images at once (1)')
    parser.add_argument('--repeats', type=int, default=30, help='runs that count (30)')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads (as torch chooses)')
    parser.add_argument('--device', default='cpu', help='as torch names it (cpu)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there too')
    return parser
