"""The parts of OpenMMLab that current PyTorch lacks, added without touching what is there.

Importing `evit_mm` imports neither torch nor mmengine. What it adds to them is installed when
mmengine has been imported, at once if it already is:

- `mmcv_ops` registers a stand-in for ``mmcv._ext`` if mmcv has no compiled operators;
- `packaged_configs` lets configs inherit from ``evit_mm::NAME.py``;
- `evit_mm.checkpoint.mmengine_loader` makes mmengine read checkpoints safely, and by name;
- `evit_mm.models` registers the backbone and the neck.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['check_environment', 'install', 'install_with_mmengine']

_MIN_TORCH = (2, 6)  # the first whose weights_only loading can resume mmengine's checkpoints


def check_environment() -> None:
    """Check that the packages that evit_mm needs are installed.

    Checks by import name, so that forks which publish the same packages under another distribution
    name count as well.

    Raises:
        ImportError: If torch, torchvision, mmengine or mmcv is missing.
    """
    for package, hint in (
        ('torch', "pip install 'evit-mm[torch]'"),
        ('torchvision', 'install the torchvision that belongs to your torch'),
        ('mmengine', "pip install 'evit-mm[mm]'"),
        ('mmcv', "pip install 'evit-mm[mm]' (no compiler needed)"),
    ):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'evit_mm needs {package}, which is not installed: {hint}')


def install_with_mmengine() -> None:
    """Call `install` when mmengine has been imported: now, or when somebody imports it."""
    if 'mmengine' in sys.modules:
        install()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport('mmengine', install))


def install() -> None:
    """Add the missing operators and the safe loading, and register the model; idempotent.

    Raises:
        ImportError: If torch is too old.
    """
    import torch

    version = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])
    if version < _MIN_TORCH:
        raise ImportError(f'evit_mm needs torch >= {".".join(map(str, _MIN_TORCH))}, but torch '
                          f'{torch.__version__} is installed: upgrade torch and torchvision '
                          'together')
    from . import mmcv_ops, packaged_configs

    mmcv_ops.install()  # first, as the models import mmcv
    packaged_configs.install()
    from ..checkpoint import mmengine_loader

    mmengine_loader.install()
    from .. import models  # noqa: F401  (registers)


class _AfterImport(MetaPathFinder):
    """A finder that calls a function once, right after a module has been imported."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action
        self._is_asking = False  # the other finders

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._name or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_act(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self._action()

            spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec
