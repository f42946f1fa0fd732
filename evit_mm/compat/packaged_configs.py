"""``_base_ = 'evit_mm::NAME.py'``: the configs of this package as bases of others.

mmengine resolves ``PACKAGE::`` for a fixed list of OpenMMLab's own packages and has no way to add
one, so the one function that resolves it is wrapped. All other names pass through unchanged.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ['CONFIGS', 'install']

CONFIGS = Path(__file__).resolve().parents[1] / '.mim' / 'configs'

_PREFIX = 'evit_mm::'
_MODULE = 'mmengine.config.config'


def install() -> None:
    """Make ``evit_mm::`` known to `mmengine.config.Config`; idempotent.

    Imports nothing: if mmengine's module is not loaded yet, it is wrapped as soon as it is.
    """
    module = sys.modules.get(_MODULE)
    if module is not None:
        _wrap(module)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(_MODULE, _wrap))


def _wrap(module: ModuleType) -> None:
    config = module.Config
    resolve = config._get_cfg_path
    if getattr(resolve, '_knows_evit_mm', False):
        return

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not cfg_path.startswith(_PREFIX):
            return resolve(cfg_path, filename)
        path = CONFIGS / cfg_path.removeprefix(_PREFIX)
        if not path.is_file():
            raise FileNotFoundError(f'no such file: {path} ({cfg_path} in {filename})')
        return str(path), None  # no scope: this package adds to registries, it has none of its own

    get_cfg_path._knows_evit_mm = True  # type: ignore[attr-defined]
    config._get_cfg_path = staticmethod(get_cfg_path)


class _AfterImport:
    """A finder that calls a function with a module as soon as it has been imported."""

    def __init__(self, name: str, callback: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.callback = callback

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            self.callback(module)

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec
