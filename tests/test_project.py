"""The project's own files: dependencies, locked versions and CI."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PINNED = {'torch': '2.11.0', 'torchvision': '0.26.0', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0',
          'mmdet': '3.3.0', 'mmsegmentation': '1.2.2'}


def requirements(path: Path) -> list[tuple[re.Match[str] | None, bool]]:
    """Return a match of name and version for each entry, and whether it has hashes."""
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
        assert 'opencv-python' not in versions  # needs libGL, which minimal containers lack


def test_installing_never_replaces_torch_or_mmcv(repository):
    """Only extras name them, so that no resolver has a reason to touch them."""
    text = (repository / 'pyproject.toml').read_text()
    core = re.search(r'^dependencies = \[(.*?)\]', text, re.M | re.S)[1]
    assert core and not re.search(r'torch|mmcv|mmengine|mmdet|mmseg|timm', core)
    for extra in ('torch', 'mm'):
        content = re.search(rf'^{extra} = \[(.*?)\]', text, re.M | re.S)[1]
        assert ('torchvision' if extra == 'torch' else 'mmcv-lite') in content


@pytest.mark.parametrize('package', ['mmengine', 'mmcv', 'torchvision'])
def test_a_missing_package_is_reported_with_a_hint(package):
    code = ('import importlib.util as util\n'
            'find = util.find_spec\n'
            f'util.find_spec = lambda name, *a: None if name == {package!r} else find(name, *a)\n'
            'import evit_mm\n'
            'evit_mm.models\n')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            timeout=300)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f'ImportError: evit_mm needs {package}, which is not installed: ')


def test_ci_runs_the_test_command_of_the_readme(repository):
    assert re.search(r'^exec make test$', (repository / '.ci' / 'run').read_text(), re.M)
    assert re.search(r'^make test\b', (repository / 'README.md').read_text(), re.M)
