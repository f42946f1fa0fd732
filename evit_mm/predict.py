"""Models that are ready to predict."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from evit_runtime.class_names import class_colours, complete_names
from evit_runtime.model import Image, Model
from evit_runtime.results import Result

from .engine import own_data, own_label_maps
from .engine.config import leaf_datasets, load_config, without_pretrained_weights
from .engine.exported import EXPORTED, is_exported
from .engine.initial_checkpoint import release_checkpoint, trained_classes
from .engine.preflight import check_checkpoint, check_operators
from .engine.preflight.model import check_model
from .errors import CheckpointError, ConfigError, UserError, one_line, translate_errors

__all__ = ['EXPORTED', 'TorchModel', 'load_model']


class TorchModel(Model):
    """Detector or segmentor of MMDetection or MMSegmentation, with its config's test pipeline.

    Its results are those of `mmdet.apis.inference_detector` and `mmseg.apis.inference_model`.
    Images of a batch are computed together if the pipeline makes them the same size, so that none
    is padded for another.

    Attributes:
        module: The detector or segmentor, an `nn.Module` in eval mode with the attributes ``cfg``,
            its config, and ``dataset_meta``, the classes and palette of the checkpoint or else of
            the config's test dataset. MMDetection's and MMSegmentation's functions take it as they
            take the one of `init_detector` and `init_model`.
    """

    def __init__(self, module: nn.Module) -> None:
        """Wrap a model that has a config; see `load_model`."""
        self.module: Any = module
        self.task = _task(module)
        meta: Any = self.module.dataset_meta
        names = [str(name) for name in meta.get('classes') or ()]
        self.class_names = complete_names(names, _class_count(module) or len(names))
        palette = meta.get('palette')
        self.palette = tuple(class_colours(
            len(self.class_names), palette if isinstance(palette, list | tuple) else None))

    @cached_property
    def _pipeline(self) -> Compose:
        return _pipeline(self.module.cfg, 'mmseg' if self.task.startswith('semantic') else 'mmdet')

    def _predict(self, images: list[Image], score_threshold: float) -> list[Result]:
        prepared = [self._prepare(image) for image in images]
        groups: dict[Any, list[int]] = {}
        for index, (image, data) in enumerate(zip(images, prepared, strict=True)):
            # Segmentors resize a whole batch to the size of its first image.
            groups.setdefault((data['inputs'].shape, image.shape), []).append(index)
        results: dict[int, Result] = {}
        for indices in groups.values():
            with torch.no_grad():
                samples = self.module.test_step({
                    key: [prepared[index][key] for index in indices]
                    for key in ('inputs', 'data_samples')})
            for index, sample in zip(indices, samples, strict=True):
                results[index] = self._result(sample, images[index].shape[:2], score_threshold)
        return [results[index] for index in range(len(images))]

    def _prepare(self, image: Image) -> Any:
        """Return what the config's test pipeline makes of an image.

        Raises:
            UserError: If it can't be resized, such as an image of one column.
        """
        pipeline = self._pipeline
        try:
            return pipeline(dict(img=image, img_id=0))
        except UserError:
            raise
        except Exception as error:  # transforms are any code
            height, width = image.shape[:2]
            raise UserError(f'an image of {width}x{height} pixels can\'t be prepared as the '
                            f'config\'s test pipeline says: {one_line(error)}') from error

    def _result(self, sample: Any, shape: tuple[int, int], score_threshold: float) -> Result:
        """Return the predictions of a DetDataSample or SegDataSample."""
        known: Any = dict(shape=shape, class_names=self.class_names, palette=self.palette)
        if 'pred_sem_seg' in sample and self.task == 'semantic segmentation':
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            return Result(label_map=labels, **known)
        if 'pred_instances' not in sample:
            raise ConfigError(f'the model {type(self.module).__name__} predicts neither boxes nor '
                              f'label maps, but {", ".join(sample.keys())}')
        found = sample.pred_instances
        found = found[found.scores >= score_threshold]  # before large masks are copied
        labels = found.labels.cpu().numpy()
        if len(labels) and labels.max() >= len(self.class_names):
            raise ConfigError(f'the model found an object of class {labels.max()}, but it has '
                              f'{len(self.class_names)} classes')
        boxes = getattr(found.bboxes, 'tensor', found.bboxes)  # mmdet's boxes have a tensor
        masks = found.masks.cpu().numpy() if 'masks' in found else None
        return Result(boxes=boxes.float().cpu().numpy(), scores=found.scores.float().cpu().numpy(),
                      labels=labels, masks=masks, **known)


def load_model(config: str | os.PathLike[str] | Config,
               checkpoint: str | os.PathLike[str] | None = None, *,
               device: str | torch.device = 'cpu', check: bool = True) -> Model:
    """Return a model that predicts: a config's with its weights, or an exported one.

        model = load_model('retinanet_evit_m4_coco', 'epoch_12.pth')
        results = model(['street.jpg', 'park.jpg'], score_threshold=0.3)

    The classes are those of the checkpoint. If it was trained on another number of classes than
    the config has, the heads are built for that number.

    Args:
        config: Path of a config, name of a packaged one such as ``'retinanet_evit_m4_coco'``, or a
            config, which is left as it is; or a file of `evit-mm export`.
        checkpoint: File, address or name of the weights of the whole model; by default the
            ``load_from`` of the config. If neither is given, the backbone has the weights of its
            ``init_cfg``, and the rest random ones.
        device: Where the model computes.
        check: Run the model once on a blank image, to see whether its parts fit together.

    Returns:
        Model: Of a config, a `TorchModel`, whose ``module`` is MMDetection's or MMSegmentation's.

    Raises:
        UserError: If config, checkpoint or file can't be read, or don't fit together.
    """
    if isinstance(config, str | os.PathLike) and is_exported(config):
        return _load_exported(config, checkpoint, device)
    with translate_errors():
        target = _device(device)
        config = load_config(config)
        if not config.get('model'):
            raise ConfigError(f'{config.filename or "the config"} has no model: it is a base '
                              'config to inherit from, or one for another purpose')
        checkpoint = checkpoint or config.get('load_from')
        if checkpoint is not None:
            without_pretrained_weights(config)
        init_default_scope(config.get('default_scope', 'mmengine'))
        model = _build(config, check)
        meta: Mapping[str, Any] = {}
        if checkpoint is None:
            _init_weights(model)
        else:
            source = os.fspath(checkpoint)
            try:
                model = _checked(model, config, source)
                content = load_checkpoint(model, source, map_location='cpu', logger='silent')
            finally:
                release_checkpoint()
            meta = content.get('meta') or {}
        leaves = list(leaf_datasets(config.get('test_dataloader') or {}))
        model.dataset_meta = _dataset_meta(meta, leaves[0] if leaves else None)
        if leaves:  # inference_model looks for the pipeline there, and edits it
            config.test_pipeline = deepcopy(leaves[0]['pipeline'])
        model.cfg = config
        return TorchModel(model.to(target).eval())


def _load_exported(path: str | os.PathLike[str], checkpoint: Any, device: Any) -> Model:
    """Return the model of an exported file.

    Raises:
        UserError: If it can't be read, or a checkpoint was given too.
    """
    if checkpoint is not None:
        raise UserError(f'{path} holds its weights: leave out the checkpoint {checkpoint}')
    if Path(path).suffix.lower() == '.pt2':  # which needs torch
        from .deployment.export.program import load_program

        return load_program(path, device=str(device))
    from evit_runtime import load_model as load_exported

    return load_exported(path, device=str(device))


def _device(device: str | torch.device) -> torch.device:
    """Return a device that can be used.

    Raises:
        UserError: If there is no such device.
    """
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f'no such device: {device}; use cpu or cuda') from error
    if target.type == 'cuda':
        count = torch.cuda.device_count()
        if (target.index or 0) >= count:
            raise UserError(f'no such device: {device}; torch finds '
                            + (f'{count} CUDA cards' if count else 'no CUDA card'))
    return target


def _build(config: Config, check: bool) -> Any:
    """Build the model of a config, and check that its parts fit together."""
    model = revert_sync_batchnorm(MODELS.build(config.model))
    check_operators(model)
    if check:
        check_model(model, config.model)
    return model


def _checked(model: Any, config: Config, source: str) -> Any:
    """Return a model that a checkpoint fits: the given one, or one with the checkpoint's classes.

    Raises:
        CheckpointError: If there is none.
    """
    try:
        check_checkpoint(model, source, purpose='test')
        return model
    except CheckpointError as error:
        try:
            classes = trained_classes(source)
        except CheckpointError:
            raise error from None
        if not classes or len(classes) == _class_count(model):
            raise
    if hasattr(model, 'decode_head'):
        own_label_maps.set_class_count(config, len(classes))
    else:
        own_data.set_class_count(config.model, len(classes))
    model = _build(config, check=False)
    check_checkpoint(model, source, purpose='test')
    return model


def _task(model: Any) -> str:
    if hasattr(model, 'decode_head'):
        return 'semantic segmentation'
    return 'instance segmentation' if getattr(model, 'with_mask', False) else 'detection'


def _class_count(model: Any) -> int | None:
    """Return the number of classes that a detector or segmentor predicts, if its head tells."""
    roi_head = getattr(model, 'roi_head', None)
    for owner, name in ((model, 'decode_head'), (roi_head, 'bbox_head'), (model, 'bbox_head'),
                        (model, 'mask_head'), (model, 'panoptic_head'), (model, 'rpn_head')):
        head = getattr(owner, name, None)
        if isinstance(head, nn.ModuleList):
            head = head[-1]  # of a cascade
        count = getattr(head, 'num_classes', None)
        if isinstance(count, int):
            return count
    return None


def _pipeline(config: Config, scope: str) -> Compose:
    """Return a config's test pipeline for images in memory.

    Args:
        config: The config of a model.
        scope: The package whose transforms the config names, unless it says so itself.

    Raises:
        ConfigError: If it has none, or one that does not begin with an image in colour.
    """
    steps: Sequence[Any] | None = config.get('test_pipeline')
    if not steps:
        raise ConfigError('the config has no test_dataloader with a pipeline, which prepares the '
                          'images for the model')
    loader = dict(steps[0])
    kind = str(getattr(loader['type'], '__name__', loader['type']))
    if 'LoadImage' not in kind or loader.get('color_type', 'color') != 'color':
        raise ConfigError('images can\'t be prepared in memory, as the config\'s test pipeline '
                          'does not begin with LoadImageFromFile in colour, but with '
                          f'{loader}')
    # Another model may have been loaded since.
    with DefaultScope.overwrite_default_scope(config.get('default_scope', scope)):
        return Compose([dict(type=f'{scope}.LoadImageFromNDArray',
                             to_float32=loader.get('to_float32', False)),
                        *_without_annotations(steps[1:])])


def _without_annotations(steps: Iterable[Any]) -> list[Any]:
    return [deepcopy(step) for step in steps
            if 'LoadAnnotations' not in str(getattr(step['type'], '__name__', step['type']))]


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
