"""Models that are ready to predict."""

import logging
import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from .engine.config import leaf_datasets, load_config, without_pretrained_weights
from .engine.initial_checkpoint import release_checkpoint
from .engine.preflight import check_checkpoint, check_operators
from .engine.preflight.model import check_model
from .errors import ConfigError, translate_errors

__all__ = ['load_model']


def load_model(config: str | os.PathLike[str] | Config,
               checkpoint: str | os.PathLike[str] | None = None, *,
               device: str | torch.device = 'cpu', check: bool = True) -> nn.Module:
    """Build the detector or segmentor of a config, and load its weights.

    `mmdet.apis.inference_detector` and `mmseg.apis.inference_model` take the result as they take
    the one of `init_detector` and `init_model`.

    Args:
        config: Path of a config, name of a packaged one such as ``'retinanet_evit_m4_coco'``, or a
            config, which is left as it is.
        checkpoint: File, address or name of the weights of the whole model; by default the
            ``load_from`` of the config. If neither is given, the backbone has the weights of its
            ``init_cfg``, and the rest random ones.
        device: Where the model computes.
        check: Run the model once on a blank image, to see whether its parts fit together.

    Returns:
        nn.Module: The model in eval mode, with the attributes ``cfg``, its config, and
        ``dataset_meta``, the classes and palette of the checkpoint or else of the config's test
        dataset.

    Raises:
        UserError: If config or checkpoint can't be read, or don't fit together.
    """
    with translate_errors():
        config = load_config(config)
        if not config.get('model'):
            raise ConfigError(f'{config.filename or "the config"} has no model: it is a base '
                              'config to inherit from, or one for another purpose')
        checkpoint = checkpoint or config.get('load_from')
        if checkpoint is not None:
            without_pretrained_weights(config)
        init_default_scope(config.get('default_scope', 'mmengine'))
        model = revert_sync_batchnorm(MODELS.build(config.model))
        check_operators(model)
        if check:
            check_model(model, config.model)
        meta: Mapping[str, Any] = {}
        if checkpoint is None:
            _init_weights(model)
        else:
            source = os.fspath(checkpoint)
            try:
                check_checkpoint(model, source, purpose='test')
                content = load_checkpoint(model, source, map_location='cpu', logger='silent')
            finally:
                release_checkpoint()
            meta = content.get('meta') or {}
        leaves = list(leaf_datasets(config.get('test_dataloader') or {}))
        model.dataset_meta = _dataset_meta(meta, leaves[0] if leaves else None)
        if leaves:  # inference_model looks for the pipeline there, and edits it
            config.test_pipeline = deepcopy(leaves[0]['pipeline'])
        model.cfg = config
        return model.to(device).eval()


def _init_weights(model: Any) -> None:
    """Initialise a model, without a message on the terminal for each of its parameters."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def _dataset_meta(meta: Mapping[str, Any], dataset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return classes and palette, from the meta of a checkpoint or else a dataset's config."""
    # mmdet 2.x and mmseg 0.x put upper-case keys into the meta itself.
    saved = meta.get('dataset_meta') or {key: meta[key] for key in ('CLASSES', 'PALETTE')
                                         if meta.get(key)}
    saved = {key.lower(): value for key, value in saved.items()}
    configured: dict[str, Any] = {}
    if dataset is not None:
        # Lazily, so that it reads no files.
        configured = dict(DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True}).metainfo)
    if saved.get('classes') and list(saved['classes']) != list(configured.get('classes') or ()):
        return saved
    return {**configured, **saved}
