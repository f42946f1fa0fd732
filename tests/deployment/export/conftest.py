"""Small models in files, each exported once."""

import numpy as np
import pytest
from small_models import small_config, small_model

from evit_mm.deployment.export import export
from evit_mm.deployment.export.verify import drawn_image


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    """Return a function that gives the config and the checkpoint of a small model."""
    import torch

    folder = tmp_path_factory.mktemp('weights')

    def write(name):
        config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
        if not config.exists():
            small_config(name).dump(config)
            torch.save({'state_dict': small_model(name).module.state_dict()}, checkpoint)
        return config, checkpoint

    return write


@pytest.fixture(scope='session')
def exported(tmp_path_factory, weights):
    """Return a function that exports a small model once, and gives the path of its file."""
    folder = tmp_path_factory.mktemp('exported')
    paths = {}

    def write(name, suffix='.onnx', **options):
        key = (name, suffix, repr(sorted(options.items())))
        if key not in paths:
            out = folder / f'{len(paths)}-{name}{suffix}'
            lines = []
            config, checkpoint = weights(name)
            paths[key] = export(config, checkpoint, out=out, report=lines.append, **options)
            assert any(line.startswith('compared with PyTorch') for line in lines), lines
        return paths[key]

    return write


@pytest.fixture
def picture():
    """Return a picture (H, W, 3) of a size, different for each seed."""

    def draw(height, width, seed=0):
        return np.roll(drawn_image((height, width)), 17 * seed, axis=(0, 1))

    return draw
