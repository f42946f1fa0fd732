"""What the extras of a fresh `pip install 'evit-mm[torch,mm]'` bring in."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

UV = Path(sys.executable).with_name('uv')
OPENCV = {'opencv-python', 'opencv-python-headless', 'opencv-contrib-python',
          'opencv-contrib-python-headless'}


def test_one_distribution_provides_cv2():
    """A second one overwrites files of the first."""
    assert len(set(packages_distributions()['cv2'])) == 1


def test_requirements_name_no_second_opencv(repository):
    """mmengine, mmcv-lite and trackers ask for opencv-python; any other would be a second cv2."""
    text = (repository / 'pyproject.toml').read_text()
    lists = re.findall(r'^[\w-]+ = \[(.*?)\]\n', text, re.M | re.S)
    assert any('mmcv-lite' in content for content in lists)
    named = {name for content in lists for name in re.findall(r'"(opencv[\w-]*)', content)}
    assert named == {'opencv-python'}


def resolve(requirements: list[str], python: str, folder: Path) -> subprocess.CompletedProcess:
    """Resolve requirements to wheels alone, as a machine without a compiler has to."""
    return subprocess.run(
        [UV, 'pip', 'compile', '--quiet', '--no-header', '--no-annotate', '--python-version',
         python, '--only-binary', ':all:', *requirements],
        cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
def test_wheels_and_one_cv2_for_every_python(repository, tmp_path, python):
    if not UV.exists():
        pytest.skip('needs uv, which `make install` installs')
    (tmp_path / 'probe.in').write_text('filelock\n')
    if resolve(['probe.in'], python, tmp_path).returncode != 0:
        pytest.skip('needs a package index')
    extras = [word for extra in ('torch', 'mm', 'runtime', 'track', 'app')
              for word in ('--extra', extra)]
    done = resolve([str(repository / 'pyproject.toml'), *extras], python, tmp_path)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(' ;')[0].strip().split('==') for line in done.stdout.splitlines())
    assert set(found) & OPENCV == {'opencv-python'}
    # What the lock file pins satisfies the same bounds, so that both have the same releases.
    lock = dict(re.findall(r'^([\w.-]+)==([\w.]+)', (repository / 'requirements/lock.txt')
                           .read_text(), re.M))
    for requirement in re.findall(r'"([\w-]+[<>]=?[^"]*)"', re.search(
            r'^torch = .*?^mm = \[.*?^\]', (repository / 'pyproject.toml').read_text(),
            re.M | re.S)[0]):
        parsed = Requirement(requirement)
        assert parsed.specifier.contains(found[parsed.name]), parsed
        assert parsed.specifier.contains(lock[parsed.name]), parsed
