"""Fixtures that the tests of several analyses share."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from evit_mm.cli.analyze import add_arguments, run


@pytest.fixture
def command() -> Callable[..., None]:
    """Parse a command line of tools/analyze.py and run it."""
    def parse_and_run(*arguments: object) -> None:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        run(parser.parse_args([str(argument) for argument in arguments]))
    return parse_and_run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images of 90x70 pixels."""
    folder = tmp_path / 'images'
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 255, (70, 90, 3), np.uint8)).save(
            folder / f'{index}.png')
    return folder


@pytest.fixture
def randomized() -> Callable[..., nn.Module]:
    """Give a model random weights and BN statistics, so that no branch is zero; sets eval mode.

    A deep model with a large ``gain`` is chaotic.
    """
    def randomize(model: nn.Module, gain: float = 0.5) -> nn.Module:
        for name, tensor in model.state_dict().items():
            if name.endswith('running_var') or (tensor.dim() == 1 and name.endswith('weight')):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() > 1 and tensor.is_floating_point():
                tensor.normal_(0, gain * tensor[0].numel() ** -0.5)
        return model.eval()
    return randomize


@pytest.fixture
def small_detector(repository: Path, tmp_path: Path) -> Path:
    """Config of the detector of `make demo` with a narrow backbone, neck and head."""
    path = tmp_path / 'small.py'
    path.write_text(f'''_base_ = {str(repository / 'configs' / 'retinanet_evit_m0_shapes.py')!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=(16, 24, 32), depths=(1, 1, 1),
                            num_heads=(2, 2, 2), key_dims=(8, 8, 8)), init_cfg=None),
    neck=dict(in_channels=[16, 24, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1))
''')
    return path
