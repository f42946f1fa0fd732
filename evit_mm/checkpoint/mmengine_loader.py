"""The loaders that mmengine gets: every checkpoint that it reads is read safely.

Names of published weights work wherever mmengine takes a checkpoint.
"""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from ..errors import CheckpointError
from .containers import as_mmengine_expects, find_weights
from .safe_load import allowed_globals, load_checkpoint_file, load_checkpoint_url, without_code
from .zoo import PUBLISHED, TIMM_REPOSITORY, local_copy

__all__ = ['install', 'load_from_http', 'load_from_local', 'load_from_name']

_GUARDED = '_evit_mm_guarded'


def install() -> None:
    """Make every loader of mmengine that reads files or addresses a safe one; idempotent."""
    from mmengine.runner import checkpoint as mmengine_checkpoint

    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme('', load_from_local, force=True)
    loader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    # torchvision:// and mmcls:// resolve a name and hand the address to this function.
    mmengine_checkpoint.load_from_http = load_from_http
    for prefix, function in loader._schemes.items():
        if prefix not in ('', 'http://', 'https://') and not hasattr(function, _GUARDED):
            loader._schemes[prefix] = _guarded(function)
    _guard_inferencers()
    _register_names()


def _guard_inferencers() -> None:
    """Keep mmengine's inferencers from executing the text of a config inside a checkpoint."""
    from mmengine.infer import BaseInferencer

    init_model = BaseInferencer._init_model
    if hasattr(init_model, _GUARDED):
        return

    @functools.wraps(init_model)
    def guarded(self: Any, cfg: Any, weights: str | None, *args: Any, **kwargs: Any) -> Any:
        if not cfg:
            raise CheckpointError(
                f'{type(self).__name__} was given no config: the one inside {weights} is Python '
                'code, which is not run; name the config file (model=...) beside the weights')
        return init_model(self, cfg, weights, *args, **kwargs)

    setattr(guarded, _GUARDED, True)
    BaseInferencer._init_model = guarded


def _guarded(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of mmengine's that calls torch.load itself, kept from running code."""
    @functools.wraps(load)
    def guarded(filename: str, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        switch = os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
        try:
            with torch.serialization.safe_globals(allowed_globals()):
                return as_mmengine_expects(
                    without_code(load(filename, map_location, *args, **kwargs)))
        except CheckpointError:
            raise
        except Exception as error:
            text = ' '.join(str(error).split())[:200]
            raise CheckpointError(f'{filename} can\'t be loaded: {type(error).__name__}: {text}'
                                  ) from error
        finally:
            if switch is not None:
                os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = switch

    setattr(guarded, _GUARDED, True)
    return guarded


# mmengine logs a loader's name from its tenth letter on: "Loads checkpoint by local backend".
def load_from_local(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """`load_checkpoint_file` for mmengine: with its signature, and weights where it looks."""
    return _for_mmengine(load_checkpoint_file(filename, map_location), filename)


def load_from_http(filename: str, map_location: Any = None, *_: Any, **__: Any) -> Any:
    """`load_checkpoint_url` for mmengine: with its signature, and weights where it looks."""
    return _for_mmengine(load_checkpoint_url(filename, map_location), filename)


def _for_mmengine(checkpoint: Any, source: str | os.PathLike[str]) -> Any:
    weights = find_weights(checkpoint)
    if weights and any('ema' in place for place in weights.place):
        print_log(f'{source} holds an average of its weights ({weights.place[0]}), which is used',
                  logger='current')
    return as_mmengine_expects(checkpoint)


def _register_names() -> None:
    """Let every loader of mmengine take the names that `address` knows; idempotent."""
    names = '|'.join(re.escape(row.name.removeprefix('evit://')) for row in PUBLISHED
                     if row.name.startswith('evit://'))
    patterns = ['evit://', 'timm://', 'hf-hub:', 'hf://', f'(?:{names})$', TIMM_REPOSITORY]
    CheckpointLoader.register_scheme(patterns, load_from_name, force=True)


# mmengine logs a loader's name from its tenth letter on: "Loads checkpoint by name backend".
def load_from_name(filename: str, map_location: Any = None) -> Any:
    """`local_copy` for mmengine: loaded, with its signature, and weights where it looks."""
    return load_from_local(local_copy(filename), map_location)
