"""EfficientViT for OpenMMLab: Microsoft's model of CVPR 2023 (arXiv 2305.07027), M0 to M5.

Not MIT's EfficientViT (ICCV 2023), which shares only the name.

Importing this package is cheap: torch and mmengine are imported when a name below is first used.
It registers `EfficientViT`, `EfficientViTFPN` and `LCPAN` in mmengine's root registry, where
MMDetection, MMSegmentation and their siblings find them, and makes mmengine and mmcv-lite work on
current PyTorch (see `evit_mm.compat`). In a config:

    custom_imports = dict(imports=['evit_mm'])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import compat
from .version import __version__

if TYPE_CHECKING:
    from .arch import ARCHS
    from .checkpoint import list_weights
    from .checkpoint.convert import convert_checkpoint
    from .deployment import deploy
    from .deployment.export import export
    from .engine import test, train
    from .models import EfficientViT, EfficientViTFPN
    from .predict import load_model

__all__ = ['ARCHS', 'EfficientViT', 'EfficientViTFPN', '__version__', 'convert_checkpoint',
           'deploy', 'export', 'list_weights', 'load_model', 'test', 'train']

_MODULES = {
    'ARCHS': 'arch',
    'EfficientViT': 'models',
    'EfficientViTFPN': 'models',
    'convert_checkpoint': 'checkpoint.convert',
    'deploy': 'deployment',
    'export': 'deployment.export',
    'list_weights': 'checkpoint',
    'load_model': 'predict',
    'test': 'engine',
    'train': 'engine',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_MODULES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


compat.check_environment()
compat.install_with_mmengine()
