"""The device of these tests, which `make check-gpu` runs.

They run on CUDA and are skipped without a card. `pytest tests/gpu --device cpu` runs the same
bodies on a CPU, except for what only CUDA has.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import fresh_registries

from evit_mm.data import generate_coco


@pytest.fixture(scope='session')
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device to test."""
    name = request.config.getoption('--device') or 'cuda'
    if name == 'cuda' and not torch.cuda.is_available():
        pytest.skip('torch finds no CUDA card; --device cpu runs this on a CPU')
    if name == 'cpu' and torch.cuda.is_available():
        pytest.skip('mmengine takes the card whatever --device says: set CUDA_VISIBLE_DEVICES=')
    return torch.device(name)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for what only CUDA has."""
    if device.type != 'cuda':
        pytest.skip('only CUDA has this')
    return device


@pytest.fixture(autouse=True)
def _no_earlier_run() -> Iterator[None]:
    with fresh_registries():
        yield


@pytest.fixture(scope='session')
def shapes(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Path:
    """8 + 4 generated images in COCO's layout."""
    root = tmp_path_factory.mktemp('shapes') / 'coco'
    generate_coco(root, num_train=8, num_val=4, image_size=(96, 96), progress=False)
    return root
