"""Promises of the project's own files: what installing does, and what it does not."""

import re
import subprocess
import sys

import pytest

PINNED = {'torch': '2.11.0', 'torchvision': '0.26.0', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0',
          'mmdet': '3.3.0', 'mmsegmentation': '1.2.2'}


def requirements(path):
    """Name and version of each entry, and whether it has hashes."""
    text = path.read_text().replace('\\\n', ' ')
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    return [(re.match(r'([\w.-]+)==([\w.+-]+)', line), '--hash=sha256:' in line) for line in lines]


@pytest.mark.parametrize('name', ['lock.txt', 'bootstrap.txt'])
def test_locks_are_pinned_hashed_and_name_no_host(repository, name):
    path = repository / 'requirements' / name
    entries = requirements(path)
    assert entries and all(match and hashed for match, hashed in entries)
    assert '://' not in path.read_text() and 'index-url' not in path.read_text()
    if name == 'lock.txt':
        versions = {match[1]: match[2] for match, _ in entries}
        assert {key: versions[key] for key in PINNED} == PINNED
        assert 'opencv-python' not in versions  # needs libGL, which a bare machine lacks


def test_installing_never_replaces_torch_or_mmcv(repository):
    """Only extras name them, so that no resolver has a reason to touch them."""
    text = (repository / 'pyproject.toml').read_text()
    core = re.search(r'^dependencies = \[(.*?)\]', text, re.M | re.S)[1]
    assert not re.search(r'torch|mmcv|mmengine|mmdet|mmseg|timm', core)
    assert 'mmcv-lite' in text and '\ntorch = [' in text


@pytest.mark.parametrize('package', ['mmengine', 'mmcv', 'torchvision'])
def test_missing_packages_are_told_in_a_sentence(package):
    code = ('import importlib.util as util\n'
            'find = util.find_spec\n'
            f'util.find_spec = lambda name, *a: None if name == {package!r} else find(name, *a)\n'
            'import evit_mm\n')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            timeout=120)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f'ImportError: evit_mm needs {package}, which is not installed: ')


def test_ci_runs_the_test_command_of_the_readme(repository):
    assert re.search(r'^exec make test$', (repository / '.ci' / 'run').read_text(), re.M)
    assert re.search(r'^    make test\b', (repository / 'README.md').read_text(), re.M)
