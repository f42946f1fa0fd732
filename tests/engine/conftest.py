"""A small real-format dataset, a config over it, and ways to run the tools."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope

from evit_mm.cli import run_tool
from evit_mm.data import generate_ade, generate_coco


@pytest.fixture(autouse=True)
def _no_earlier_run(monkeypatch) -> None:
    """Start without the logger, message hub and default scope of any run before.

    mmengine keeps them for the life of the process under the config's name and the second at which
    the run began, so that the second of two quick runs would log to the first one's streams.
    """
    for kind in (DefaultScope, MessageHub, MMLogger):
        monkeypatch.setattr(kind, '_instance_dict', type(kind._instance_dict)())


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


@pytest.fixture
def config_file(repository: Path) -> Path:
    """RetinaNet-M0 on the generated dataset."""
    return repository / 'configs' / 'retinanet_evit_m0_shapes.py'


@pytest.fixture
def config(config_file: Path) -> Config:
    """The same, read."""
    return Config.fromfile(config_file)


@pytest.fixture
def tool(repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of the tools in a process of its own."""

    def run(name, *arguments, cwd, launcher=(), **environment):
        command = [sys.executable, *launcher, str(repository / 'tools' / name),
                   *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900,
                              env={**os.environ, 'OMP_NUM_THREADS': '2', **environment})

    return run


@pytest.fixture
def scalars() -> Callable[[Path], list[dict]]:
    """Read the logged training steps of the latest run in a work dir."""

    def read(work_dir: Path) -> list[dict]:
        path = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda p: p.stat().st_mtime)
        return [entry for entry in map(json.loads, path.read_text().splitlines())
                if 'loss' in entry]

    return read


@pytest.fixture
def mistake(capsys, monkeypatch, tmp_path) -> Callable[..., str]:
    """Run a tool in this process; it must end with status 2 and one sentence, which is given."""
    monkeypatch.chdir(tmp_path)

    def run(parser, action, *arguments):
        assert run_tool(parser(), action, [str(argument) for argument in arguments]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        sentences = [line for line in errors if line.startswith('error: ')]
        assert len(sentences) == 1 and not any('Traceback' in line for line in errors), errors
        return sentences[0]

    return run
