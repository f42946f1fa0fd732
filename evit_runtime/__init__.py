"""Predictions of exported models, without PyTorch.

A model that `evit-mm export` has written runs with NumPy, OpenCV and onnxruntime or OpenVINO:

    from evit_runtime import load_model

    results = load_model('model.onnx')(['street.jpg'])

Nothing here imports torch, OpenMMLab's packages or `evit_mm`, which uses the same results,
pictures, command and page. The names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .errors import UserError
    from .model import Model
    from .results import Result

__all__ = ['Model', 'Result', 'UserError', '__version__', 'load_model']

_MODULES = {'Model': 'model', 'Result': 'results', 'UserError': 'errors', 'load_model': 'exported'}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_MODULES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
