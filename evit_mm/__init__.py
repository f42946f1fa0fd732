"""EfficientViT for OpenMMLab: Microsoft's model of CVPR 2023 (arXiv 2305.07027), M0 to M5.

Not MIT's EfficientViT (ICCV 2023), which shares only the name.

Importing this package makes the ecosystem work on current PyTorch (see `evit_mm.compat`), lets it
load published weights by name (see `evit_mm.checkpoint.zoo`), and registers `EfficientViT` and
`EfficientViTFPN` in mmengine's root registry, where MMDetection, MMSegmentation and every sibling
find them. In a config:

    custom_imports = dict(imports=['evit_mm'])
"""

from . import compat
from .version import __version__

compat.check_environment()
compat.install()

from . import checkpoint, models  # noqa: E402  (need the operators that compat provides)
from .checkpoint import mmengine_loader  # noqa: E402

mmengine_loader.install()

__all__ = ['__version__', 'checkpoint', 'compat', 'models']
