"""Small datasets in real formats, configs for them, one shared training, and ways to run more."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mmengine.config.config
import mmengine.runner.loops
import mmengine.runner.runner
import pytest
import torch
from mmengine.config import Config
from small_runs import DETECTION, LOADERS, fresh_registries, read_scalars

from evit_mm.checkpoint import safe_load
from evit_mm.data import generate_ade, generate_coco
from evit_mm.engine import config as configure
from evit_mm.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

SEGMENTOR = """
_base_ = ['mmseg::_base_/models/upernet_r50.py', 'mmseg::_base_/datasets/ade20k.py',
          'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_20k.py']
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True, type='EfficientViT', stem_strides=(8,), norm_eval=False,
        arch=dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2))),
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=16, num_classes=150),
    auxiliary_head=dict(in_channels=24, channels=8, num_classes=150))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
              dict(type='RandomCrop', crop_size=(64, 64)), dict(type='PackSegInputs')]))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)),
              dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=4))
"""


@pytest.fixture(autouse=True)
def _no_earlier_run() -> Iterator[None]:
    with fresh_registries():
        yield


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of a small run: all of it is mmengine's, and none is checked here.

    That is a pause of 2 s after each pass over the data, a look at compilers, and the layout of the
    config, which is printed about five times. Runs in processes of their own keep all of it.
    """
    monkeypatch.setattr(mmengine.runner.loops, 'time', SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', dict)
    monkeypatch.setattr(mmengine.config.config, 'FormatCode', lambda text, **_: (text, True),
                        raising=False)  # OneDL's mmengine does not format


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """8 + 4 generated images in COCO's layout."""
    root = tmp_path_factory.mktemp('shapes') / 'coco'
    generate_coco(root, num_train=8, num_val=4, image_size=(96, 96), progress=False)
    return root


@pytest.fixture(scope='session')
def scenes(tmp_path_factory) -> Path:
    """8 + 4 generated images in ADE20K's layout."""
    root = tmp_path_factory.mktemp('shapes') / 'ade'
    generate_ade(root, num_train=8, num_val=4, image_size=(96, 96), progress=False)
    return root


@pytest.fixture(scope='session')
def config_file() -> Path:
    """RetinaNet-M0 on the generated dataset."""
    return REPOSITORY / 'configs' / 'retinanet_evit_m0_shapes.py'


@pytest.fixture
def config(config_file: Path) -> Config:
    """The same, read."""
    return Config.fromfile(config_file)


@pytest.fixture
def flat_config_file(config: Config, config_file: Path, tmp_path: Path) -> Path:
    """The same without bases, for each of which a process parses mmdet's metafiles again."""
    path = tmp_path / config_file.name
    config.dump(path)
    return path


@pytest.fixture(scope='session')
def detection() -> dict:
    """Options for a small training of that config."""
    return dict(DETECTION)


@pytest.fixture(scope='session')
def loaders() -> dict:
    """Options for dataloaders without worker processes."""
    return dict(LOADERS)


def _run_script(command, cwd, **environment) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True,
                          timeout=900, env={**os.environ, 'PYTHON': sys.executable,
                                            'OMP_NUM_THREADS': '1', **environment})


def _arguments(options: dict) -> list[str]:
    """Return options as --cfg-options takes them."""
    return ['--cfg-options', *(f'{key}={value}'.replace(' ', '')
                               for key, value in options.items())]


@pytest.fixture(scope='session')
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a process of its own; dicts become --cfg-options."""

    def run(*command, cwd, **environment):
        flat = [word for part in command
                for word in (_arguments(part) if isinstance(part, dict) else [part])]
        return _run_script(flat, cwd, **environment)

    return run


@pytest.fixture(scope='session')
def trained(tmp_path_factory, script, config_file, shapes) -> SimpleNamespace:
    """A training by tools/train.py: its work dir with two checkpoints, and what it printed."""
    folder = tmp_path_factory.mktemp('trained')
    done = script(sys.executable, REPOSITORY / 'tools' / 'train.py', config_file, '--data-root',
                  shapes, '--work-dir', 'run', '--seed', 3, DETECTION, cwd=folder)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(work_dir=folder / 'run', printed=done.stdout + done.stderr,
                           checkpoint=str(folder / 'run' / 'epoch_2.pth'))


@pytest.fixture(scope='session')
def scalars() -> Callable[[Path], list[dict]]:
    """Read the logged training steps of the latest run in a work dir."""

    return read_scalars


@pytest.fixture
def mistake(monkeypatch, tmp_path, capsys) -> Callable[..., str]:
    """Call train or test, which must raise a UserError of one line before the summary."""
    monkeypatch.chdir(tmp_path)

    def run(action, *arguments, **options):
        with pytest.raises(UserError) as caught:
            action(*arguments, **options)
        text = str(caught.value)
        assert '\n' not in text
        assert 'weights:' not in capsys.readouterr().out
        return text

    return run


@pytest.fixture
def ade(scenes, tmp_path):
    """A copy of the generated scenes to break."""
    root = tmp_path / 'ade'
    shutil.copytree(scenes, root)
    return root


@pytest.fixture
def segmentor_file(tmp_path):
    """UperNet on a tiny EfficientViT, in plain MMSegmentation."""
    path = tmp_path / 'segmentor.py'
    path.write_text(SEGMENTOR)
    return path


@pytest.fixture
def segmentor(segmentor_file, ade):
    """The same, read, over the copy."""
    config = Config.fromfile(segmentor_file)
    configure.set_data_root(config, ade)
    return config


@pytest.fixture
def readings(monkeypatch):
    """The files that are read as checkpoints."""
    files = []
    load = torch.load

    def record(path, *arguments, **options):
        files.append(str(path))
        return load(path, *arguments, **options)

    monkeypatch.setattr(safe_load.torch, 'load', record)
    return files
