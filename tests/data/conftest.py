"""Generated datasets that several test files read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evit_mm.data import generate_ade, generate_coco


@pytest.fixture(scope='session')
def small() -> dict[str, Any]:
    """Arguments of a dataset that has everything a large one has."""
    return dict(num_train=11, num_val=4, image_size=(96, 112), seed=3, progress=False)


@pytest.fixture(scope='session')
def coco_root(tmp_path_factory, small) -> Path:
    """The small dataset in COCO's layout."""
    root = tmp_path_factory.mktemp('shapes') / 'coco'
    generate_coco(root, **small)
    return root


@pytest.fixture(scope='session')
def ade_root(tmp_path_factory, small) -> Path:
    """The small dataset in ADE20K's layout."""
    root = tmp_path_factory.mktemp('shapes') / 'ade'
    generate_ade(root, **small)
    return root


@pytest.fixture(scope='session')
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Function that reads all files below a folder, by relative path."""
    def read(root: Path) -> dict[str, bytes]:
        return {path.relative_to(root).as_posix(): path.read_bytes()
                for path in sorted(root.rglob('*')) if path.is_file()}
    return read
