"""What `pip install` gives, from an sdist by way of a wheel, outside of the checkout."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

BUILT_FROM = ('LICENSE', 'MANIFEST.in', 'README.md', 'configs', 'evit_mm', 'evit_runtime',
              'pyproject.toml', 'tests', 'tools')


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Build an sdist of a copy of the sources, and install the wheel made from it in a folder."""
    source = tmp_path_factory.mktemp('source')
    repository = Path(__file__).resolve().parents[2]
    for name in BUILT_FROM:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, source / name, symlinks=True,
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(repository / name, source / name)
    built = tmp_path_factory.mktemp('built')
    subprocess.run([sys.executable, '-c', 'import sys; from setuptools.build_meta import '
                    'build_sdist; build_sdist(sys.argv[1])', str(built)], cwd=source, check=True)
    [sdist] = built.glob('*.tar.gz')
    target = tmp_path_factory.mktemp('installed')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index', '--no-deps',
                    '--no-build-isolation', '--target', str(target), str(sdist)], check=True)
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Run a command with the installed package, in a folder of its own."""

    def run_command(*command):
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, 'PYTHONPATH': str(installed)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_command


def test_files(installed, repository):
    package = installed / 'evit_mm'
    assert {entry.name for entry in installed.iterdir()} == {
        'bin', 'evit_mm', 'evit_runtime', next(installed.glob('evit_mm-*.dist-info')).name}
    assert (package / 'py.typed').is_file() and (installed / 'evit_runtime/py.typed').is_file()
    for folder, pattern in (('configs', '*.py'), ('tools', '*.py'), ('tools', '*.sh')):
        original = {file.relative_to(repository): file.read_bytes()
                    for file in (repository / folder).rglob(pattern)}
        mim = package / '.mim'
        assert original and original == {file.relative_to(mim): file.read_bytes()
                                         for file in (mim / folder).rglob(pattern)
                                         if '__pycache__' not in file.parts}
    assert not (package / '.mim' / 'configs').is_symlink()
    assert os.access(package / '.mim' / 'tools' / 'dist_train.sh', os.X_OK)
    for name in ('evit_mm', 'evit_runtime'):
        modules = {file.relative_to(repository) for file in (repository / name).rglob('*.py')
                   if '.mim' not in file.parts}
        assert modules == {file.relative_to(installed) for file in (installed / name).rglob('*.py')
                           if '.mim' not in file.parts}


def test_metadata(installed):
    [distribution] = distributions(path=[str(installed)])
    from evit_mm import __version__

    assert distribution.version == __version__
    assert set(distribution.metadata.get_all('Provides-Extra')) >= {'torch', 'mm', 'analysis'}
    assert not any('example' in value or 'localhost' in value for key, value
                   in distribution.metadata.items() if key in ('Project-URL', 'Author-email'))


def test_the_command(run, installed):
    from evit_mm import __version__

    assert run(installed / 'bin' / 'evit-mm', '--version') == f'evit-mm {__version__}\n'
    assert run(installed / 'evit_mm' / '.mim' / 'tools' / 'train.py', '--help').startswith(
        'usage: train.py ')


def test_configs_are_bases_of_others(run, installed, tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = 'evit_mm::retinanet_evit_m4_coco.py'\n")
    printed = run('-c', 'import evit_mm\n'
                  'from mmengine.config import Config\n'
                  'config = Config.fromfile("mine.py")\n'
                  'print(evit_mm.__file__, config.model.backbone.type, config.optim_wrapper.type)')
    assert printed == f'{installed / "evit_mm" / "__init__.py"} EfficientViT OptimWrapper\n'
