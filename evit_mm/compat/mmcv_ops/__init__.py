"""A stand-in for ``mmcv._ext`` where mmcv is installed without compiled operators.

``mmcv.ops`` loads its operators from the extension module ``mmcv._ext``, which mmcv-lite doesn't
have. Without it ``import mmcv.ops`` fails, and with it ``import mmdet``, even for a model that
never calls such an operator. `install` registers a module of that name which

- computes operators that detectors and segmentors need with torchvision and torch, on every device
  that these support: the `OPERATORS` of the modules of this package, see `provided_operators`;
- raises a `MissingOpError` that names the operator where any other is called. `missing_operators`
  tells before the call.

A compiled ``mmcv._ext`` always takes precedence.

The operators have the names and arguments of the compiled ones, and write their results into the
tensors that mmcv hands over. Float16 and bfloat16 are computed in float32 and rounded once, so that
a result never depends on autocast. Where torch has a deterministic implementation alone for a CPU,
``torch.use_deterministic_algorithms(True)`` raises torch's error on CUDA; the compiled operators
ignore that setting.
"""

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision
from torch import Tensor

from ...errors import UserError
from . import (
    attention,
    border_align,
    carafe,
    deform_conv,
    focal_loss,
    masked_conv,
    nms,
    overlaps,
    precise_roi,
    psa_mask,
    roi,
    sampled_roi,
    sync_bn,
)
from .usage import called_operators

__all__ = ['MissingOpError', 'install', 'missing_operators', 'provided_operators']

_EXTENSION = 'mmcv._ext'
# A name in the module's own dictionary rather than an identity check, so that the stand-in is still
# recognized after this file has been reloaded.
_MARK = '__evit_mm_stand_in__'


class MissingOpError(UserError, NotImplementedError):
    """An operator of mmcv's compiled extension that is needed, but not available."""

    def __init__(self, operator: str, user: str = '') -> None:
        """Describe a missing operator.

        Args:
            operator: Its name in ``mmcv._ext``.
            user: What needs it, if known.
        """
        super().__init__(
            f'mmcv op {operator!r} is not available{f", which {user} needs" if user else ""}: mmcv '
            'is installed without compiled operators (mmcv-lite), and evit_mm does not replace '
            'this one. Replace mmcv-lite by a compiled mmcv 2.1.x that matches torch '
            f'{torch.__version__}: run `pip uninstall mmcv-lite`, then `pip install mmcv==2.1.0` '
            'with a wheel for that torch, or, where there is none, from source with a compiler and '
            'MMCV_WITH_OPS=1')
        self.operator = operator
        self.user = user

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.operator, self.user)


def install() -> bool:
    """Make ``import mmcv.ops`` work where mmcv has no compiled extension; idempotent.

    It imports neither mmcv nor ``mmcv.ops``, so it is cheap, and can be called before they are
    imported.

    Returns:
        True if the stand-in serves as ``mmcv._ext`` after the call. False if a compiled (or any
        other) ``mmcv._ext`` does, or if mmcv is not installed.
    """
    module = sys.modules.get(_EXTENSION)
    if module is None:
        if not _mmcv_lacks_extension():
            return False
        module = _build_module()
        sys.modules[_EXTENSION] = module
    elif _MARK not in vars(module):
        return False

    # The import system makes a submodule an attribute of its package only when it loads the
    # submodule, and it never loads one that is in sys.modules already.
    package = sys.modules.get('mmcv')
    if package is not None:
        vars(package)['_ext'] = module
    return True


def provided_operators() -> tuple[str, ...]:
    """Return the names of the operators that the stand-in computes, sorted."""
    return tuple(sorted(operator.__name__ for operator in _OPERATORS))


def missing_operators(cls: type) -> list[str]:
    """Return the operators that methods of a class call, and that are not available, sorted.

    With a compiled ``mmcv._ext`` there are none.
    """
    module = sys.modules.get(_EXTENSION)
    if module is None or _MARK not in vars(module):
        return []
    return sorted(called_operators(cls) - set(vars(module)))


def _mmcv_lacks_extension() -> bool:
    """Return whether mmcv is installed, but without the extension module."""
    package = importlib.util.find_spec('mmcv')
    if package is None or package.submodule_search_locations is None:
        return False
    # importlib.util.find_spec would import mmcv to get its path. A finder without find_spec is one
    # that Python below 3.12 still tolerates.
    path = list(package.submodule_search_locations)
    finders = (finder for finder in sys.meta_path if hasattr(finder, 'find_spec'))
    return all(finder.find_spec(_EXTENSION, path) is None for finder in finders)


def _build_module() -> ModuleType:
    module = ModuleType(_EXTENSION, "Stand-in for mmcv's compiled operators.")
    # find_spec raises on a module without a spec. The spec has no loader because
    # mmcv.utils.ext_loader.check_ops_exist and mmengine's mmcv_full_available take one for proof
    # that all operators are there.
    module.__spec__ = importlib.machinery.ModuleSpec(_EXTENSION, loader=None, origin=__name__)
    vars(module).update({operator.__name__: _as_kernel(operator) for operator in _OPERATORS})
    vars(module).update({
        function.__name__: function
        for function in (get_compiler_version, get_compiling_cuda_version)})
    vars(module).update({_MARK: True, '__getattr__': _stub})
    return module


def _as_kernel(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator that ignores autograd and autocast, as a compiled one does."""

    @functools.wraps(operator)
    def kernel(*args: Any, **kwargs: Any) -> Any:
        tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
            return operator(*args, **kwargs)

    return kernel


def _stub(name: str) -> Callable[..., NoReturn]:
    """Return a function in place of a missing operator: ``mmcv.ops`` looks all up at import."""
    if name.startswith('__') and name.endswith('__'):
        # Answering for these would feign protocols, e.g. __path__ those of a package.
        raise AttributeError(f'module {_EXTENSION!r} has no attribute {name!r}')

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise MissingOpError(name)

    missing.__name__ = missing.__qualname__ = name
    return missing


def get_compiler_version() -> str:
    """Describe, for ``collect_env``, what takes the place of compiled operators."""
    return f'not compiled (evit_mm stand-in on torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Describe, for ``collect_env``, which CUDA the operators in use were built for."""
    toolkit = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
    return f'not compiled (torch was built for {toolkit})'


_OPERATORS: tuple[Callable[..., Any], ...] = tuple(
    operator
    for family in (attention, border_align, carafe, deform_conv, focal_loss, masked_conv, nms,
                   overlaps, precise_roi, psa_mask, roi, sampled_roi, sync_bn)
    for operator in family.OPERATORS)
