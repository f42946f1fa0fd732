"""The command line of the analyses."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from evit_mm.analysis import attention_share, channels, head_similarity, runtime
from evit_mm.cli.analyze import DESCRIPTION, add_arguments, run

# The function that a sub-command calls, and the flags that it requires.
ANALYSES = {
    'runtime': (runtime, 'analyze_runtime', ['m0']),
    'proportion': (attention_share, 'analyze_attention_share', []),
    'heads': (head_similarity, 'analyze_heads', ['m0', '--images', 'folder']),
    'channels': (channels, 'analyze_channels', ['m0', '--images', 'folder']),
}


def make_parser():
    parser = argparse.ArgumentParser(prog='analyze.py', description=DESCRIPTION)
    add_arguments(parser)
    return parser


@pytest.mark.parametrize('name', ANALYSES)
def test_common_flags(name, monkeypatch):
    module, function, required = ANALYSES[name]
    calls = []
    monkeypatch.setattr(module, function, lambda *args, **keywords: calls.append(keywords))
    for flags, expected in (
            ([], dict(out=Path('work_dirs', 'analysis', name), overwrite=False, device='cpu',
                      threads=None, seed=0)),
            (['--out', 'x', '--overwrite', '--device', 'cuda', '--threads', '3', '--seed', '4'],
             dict(out=Path('x'), overwrite=True, device='cuda', threads=3, seed=4))):
        run(make_parser().parse_args([name, *required, *flags]))
        assert {key: calls[-1][key] for key in expected} == expected


@pytest.mark.parametrize('name', ANALYSES)
def test_defaults_of_flags_are_those_of_keywords(name, monkeypatch):
    module, function, required = ANALYSES[name]
    defaults = {key: value for key, value in getattr(module, function).__kwdefaults__.items()
                if value is not None}
    calls = []
    monkeypatch.setattr(module, function, lambda *args, **keywords: calls.append(keywords))
    run(make_parser().parse_args([name, *required]))
    parsed = {**calls[0], 'out': str(calls[0]['out'])}
    assert {key: parsed[key] for key in defaults} == defaults


def test_help_lists_the_analyses():
    listed = {line.split()[0] for line in make_parser().format_help().splitlines() if line.strip()}
    assert listed >= set(ANALYSES)


@pytest.mark.slow
def test_mistake_of_the_tool_is_one_sentence(repository, tmp_path):
    done = subprocess.run([sys.executable, repository / 'tools' / 'analyze.py', 'proportion',
                           '--shares', '2'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == 'error: --shares must be between 0 and 1, got 2.0\n'


def test_parser_imports_nothing_heavy():
    code = ('import argparse, sys; from evit_mm.cli.analyze import add_arguments; '
            'add_arguments(argparse.ArgumentParser()); '
            'print({"timm", "matplotlib.figure", "mmdet", "mmseg"} & set(sys.modules))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'set()\n'
