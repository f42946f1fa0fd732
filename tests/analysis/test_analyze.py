"""The command line of tools/analyze.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from evit_mm.cli.analyze import analyze, analyze_parser

ANALYSES = {'runtime': ['m0'], 'proportion': [], 'heads': ['m0', '--images', 'folder'],
            'channels': ['m0', '--images', 'folder']}


@pytest.mark.parametrize('name', ANALYSES)
def test_all_analyses_have_the_common_flags(name):
    required = [name, *ANALYSES[name]]
    options = analyze_parser().parse_args(required)
    assert options.out == Path('work_dirs', 'analysis', name)
    assert (options.overwrite, options.device, options.threads, options.seed) == (
        False, 'cpu', None, 0)
    options = analyze_parser().parse_args([*required, '--out', 'x', '--overwrite', '--device',
                                           'cuda', '--threads', '3', '--seed', '4'])
    assert (options.out, options.overwrite, options.device, options.threads, options.seed) == (
        Path('x'), True, 'cuda', 3, 4)
    called = []
    options.action = called.append
    analyze(options)
    assert called == [options]


def test_the_command_line_imports_nothing_heavy():
    """Help and mistakes shall not wait for what only an analysis needs."""
    code = ('import sys; from evit_mm.cli.analyze import analyze_parser; analyze_parser(); '
            'print({"timm", "matplotlib.figure", "mmdet", "mmseg"} & set(sys.modules))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'set()\n'


def test_the_tool_lists_its_analyses(repository):
    done = subprocess.run([sys.executable, repository / 'tools' / 'analyze.py', '--help'],
                          capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert listed >= set(ANALYSES)
