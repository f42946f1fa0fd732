"""What OpenMMLab lacks on current PyTorch, added without touching what is there.

`mmcv_ops` gives mmcv-lite the operators that detectors need; `torch_load` makes mmengine read
checkpoints safely, its own training checkpoints included.
"""

import importlib.util

__all__ = ['check_environment', 'install']

_MIN_TORCH = (2, 6)  # the first whose weights_only loading can resume mmengine's checkpoints


def check_environment() -> None:
    """Say in one sentence what is missing from the environment.

    Checks by import name, so that forks which publish the same packages under another
    distribution name count too.

    Raises:
        ImportError: If torch, torchvision, mmengine or mmcv is missing, or torch is too old.
    """
    for package, install_hint in (
        ('torch', "pip install '.[torch]' in the checkout of evit-mm"),
        ('torchvision', 'install the torchvision that belongs to your torch'),
        ('mmengine', "pip install '.[mm]' in the checkout of evit-mm"),
        ('mmcv', "pip install '.[mm]' in the checkout of evit-mm (no compiler needed)"),
    ):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'evit_mm needs {package}, which is not installed: {install_hint}')
    import torch

    version = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])
    if version < _MIN_TORCH:
        wanted = '.'.join(map(str, _MIN_TORCH))
        raise ImportError(f'evit_mm needs torch >= {wanted}, but torch {torch.__version__} is '
                          'installed: upgrade torch and torchvision together')


def install() -> None:
    """Add the operators that mmcv-lite lacks, and ``evit_mm::`` to configs; idempotent."""
    from . import mmcv_ops, packaged_configs

    mmcv_ops.install()
    packaged_configs.install()
