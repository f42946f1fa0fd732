"""Register our checkpoint loaders with mmengine.

`install` is called once evit_mm and mmengine are imported. It changes mmengine for the process:

- **Published names.** `CheckpointLoader` gets a loader for ``evit://``, ``timm://``, ``hf-hub:``,
  ``hf://`` and the published names without a scheme, which mmengine does not know. Configs can then
  name weights instead of addresses.
- **Files and addresses.** Our loader replaces those of local files and of http and https addresses,
  for three reasons. torch's default, on which they rely, refuses mmengine's own training
  checkpoints, so that runs can't be resumed (mmengine #1655); the variable that users are told to
  set in that case, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, lets any file run code. They read no
  safetensors files. And weights in a container other than ``state_dict`` are not loaded.
- **Other schemes** (``open-mmlab://``, ``torchvision://``, ``s3://``, ...) keep their loaders, but
  those run with our allow-list and without that variable.
- **Inferencers** without a config would execute the one inside the checkpoint, which is Python
  code. They raise an error instead.

The environment variable ``EVIT_MM_SAFE_LOADING=0`` limits this to the published names: all other
loaders and the inferencers stay as mmengine has them. What is loaded by a published name, and what
the command ``evit-mm convert`` reads, is loaded safely in any case.

`install` needs mmengine and torch, but not mmcv, mmdet or `evit_mm.models`, so that it can run as
soon as mmengine has been imported. That can happen while a module of evit_mm is being imported; the
modules of this package therefore import mmengine in functions only.
"""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import torch

from ..errors import CheckpointError, MissingCheckpointError
from .containers import as_mmengine_expects, find_weights
from .safe_load import allowed_globals, without_code
from .zoo import PUBLISHED, TIMM_REPOSITORY, read_checkpoint

__all__ = ['install', 'load_from_evit_mm']

_SWITCH = 'EVIT_MM_SAFE_LOADING'
_GUARDED = '_evit_mm_guarded'  # marks functions that have been wrapped already


def install() -> None:
    """Register the loaders that the module's docstring lists; idempotent."""
    from mmengine.runner.checkpoint import CheckpointLoader

    names = '|'.join(re.escape(row.name.removeprefix('evit://')) for row in PUBLISHED
                     if row.name.startswith('evit://'))
    # mmengine matches its schemes as regular expressions.
    schemes = ['evit://', 'timm://', 'hf-hub:', 'hf://', f'(?:{names})$', TIMM_REPOSITORY]
    CheckpointLoader.register_scheme(schemes, load_from_evit_mm, force=True)
    if os.environ.get(_SWITCH) != '0':
        _replace_loaders()
        _guard_inferencers()


def load_from_evit_mm(filename: str, map_location: Any = None, *_: Any, **__: Any) -> Any:
    """Load a checkpoint safely; a loader of mmengine, which logs it as 'evit_mm backend'.

    Args:
        filename: A file, an address or a published name.
        map_location: As in `torch.load`.

    Returns:
        The content, with its weights under ``state_dict``.

    Raises:
        CheckpointError: As in `read_checkpoint`.
    """
    checkpoint = read_checkpoint(filename, map_location)
    weights = find_weights(checkpoint)
    if weights and any('ema' in place for place in weights.place):
        from mmengine.logging import print_log

        print_log(f'{filename}: using the averaged weights under {weights.place[0]!r}',
                  logger='current')
    return as_mmengine_expects(checkpoint)


def _replace_loaders() -> None:
    from mmengine.runner import checkpoint as mmengine_checkpoint

    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme(('', 'http://', 'https://'), load_from_evit_mm, force=True)
    # torchvision:// and mmcls:// map a name to an address and pass that to this function.
    mmengine_checkpoint.load_from_http = load_from_evit_mm
    # mmengine has no public list of its schemes.
    for prefix, function in loader._schemes.items():
        if function is not load_from_evit_mm and not hasattr(function, _GUARDED):
            loader._schemes[prefix] = _guarded(function)


def _guarded(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a loader that calls torch.load itself, so that it can't run code."""
    @functools.wraps(load)
    def guarded(filename: str, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        variables = ('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD')
        usual = {name: os.environ.pop(name) for name in variables if name in os.environ}
        # OneDL's mmengine asks for everything in a file after torch has refused it.
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
        try:
            with torch.serialization.safe_globals(allowed_globals()):
                return as_mmengine_expects(
                    without_code(load(filename, map_location, *args, **kwargs)))
        except CheckpointError:
            raise
        except Exception as error:
            text = ' '.join(str(error).split())[:200]
            kind = MissingCheckpointError if isinstance(error, FileNotFoundError) \
                else CheckpointError
            raise kind(f'{filename} can\'t be loaded: {type(error).__name__}: {text}') from error
        finally:
            del os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD']
            os.environ.update(usual)

    setattr(guarded, _GUARDED, True)
    return guarded


def _guard_inferencers() -> None:
    """Keep mmengine's inferencers from executing the config inside a checkpoint."""
    from mmengine.infer import BaseInferencer

    # The only method that all inferencers share and that sees both the config and the weights;
    # nothing public does.
    init_model = BaseInferencer._init_model
    if hasattr(init_model, _GUARDED):
        return

    @functools.wraps(init_model)
    def guarded(self: Any, cfg: Any, weights: str | None, *args: Any, **kwargs: Any) -> Any:
        if not cfg:
            raise CheckpointError(
                f'{type(self).__name__} needs a config: the one inside {weights} is Python code, '
                'which is not executed; pass the config file (model=...) with the weights')
        return init_model(self, cfg, weights, *args, **kwargs)

    setattr(guarded, _GUARDED, True)
    BaseInferencer._init_model = guarded
