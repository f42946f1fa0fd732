"""A small real-format data set and a config over it."""

from pathlib import Path

import pytest
from mmengine.config import Config

from evit_mm.data import generate_coco


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """8 + 4 generated images in COCO's layout."""
    root = tmp_path_factory.mktemp('shapes') / 'coco'
    generate_coco(root, num_train=8, num_val=4, image_size=(96, 96), progress=False)
    return root


@pytest.fixture
def config_file(repository: Path) -> Path:
    """RetinaNet-M0 on the generated data set."""
    return repository / 'configs' / 'retinanet_evit_m0_shapes.py'


@pytest.fixture
def config(config_file: Path) -> Config:
    """The same, read."""
    return Config.fromfile(config_file)
