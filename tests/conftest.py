"""Fixtures that tests in several folders share."""

import gc
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import evit_mm  # noqa: F401  (before mmdet, which needs the operators that it provides)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / 'shared'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--device', choices=('cpu', 'cuda'), help='device of the tests in tests/gpu '
                     '(default: cuda; without a CUDA card they are skipped)')


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption('--device') == 'cuda' and not torch.cuda.is_available():
        raise pytest.UsageError('--device cuda: torch finds no CUDA card')


def pytest_collection_finish() -> None:
    """Leave what imports made out of later collections: mmengine collects for each dataset."""
    gc.collect()
    gc.freeze()


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f'needs {Path("..", "shared", *parts)} beside the repository, which is not '
                    'part of it')
    return path


@pytest.fixture(scope='session')
def golden() -> ModuleType:
    """The recorded outputs' own module: `official_state`, `pattern`, and `HERE`, their folder."""
    path = _shared('golden', 'fill.py')
    spec = importlib.util.spec_from_file_location('golden_fill', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def coco_mini() -> Path:
    """48 + 16 real COCO images."""
    return _shared('data', 'coco_mini')


@pytest.fixture(scope='session')
def ade_mini() -> Path:
    """2 real ADE20K images, the same for training and validation."""
    return _shared('data', 'ade_mini')


@pytest.fixture(scope='session')
def hostile_cases() -> Path:
    """Three checkpoints that once took years, gigabytes, or ended in a traceback."""
    return _shared('cases', 'hostile')


@pytest.fixture
def repository() -> Path:
    """The root of this project."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Switch TF32 off, whose ten bits would hide mistakes on a CUDA card."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


class HostilePickle:
    """An object whose pickle creates the file ``marker`` if loading it runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return open, (str(self.marker), 'w')

    @property
    def was_run(self) -> bool:
        return self.marker.exists()


@pytest.fixture
def hostile_pickle(tmp_path: Path) -> Iterator[HostilePickle]:
    """Yield a pickle that must not run; a test that runs it on purpose removes its marker."""
    pickle = HostilePickle(tmp_path / 'code_was_run')
    yield pickle
    assert not pickle.was_run
