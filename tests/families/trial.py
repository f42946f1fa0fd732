"""One training step and one prediction of a family's model with EfficientViT."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from families.batches import HEIGHT, WIDTH, detection_batch, segmentation_batch
from families.families import SPECIAL, Special, config_of, folder
from families.replacement import replace_backbone
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from evit_mm.engine.preflight.model import check_model
from evit_mm.engine.preflight.operators import check_operators
from evit_mm.models import EfficientViT

STAGES = ('builds', 'trains', 'predicts')


def try_family(family: str) -> dict[str, Any]:
    """Build, train and predict with a family's model.

    Returns:
        dict: What of `STAGES` works, and ``error``, the message of the exception that ended it.
    """
    torch.manual_seed(0)
    outcome: dict[str, Any] = dict.fromkeys(STAGES, False)
    outcome['error'] = ''
    try:
        config = adapted_config(family)
        model = built_model(config)
        outcome['builds'] = True
        batch = batch_for(config, SPECIAL[family].size if family in SPECIAL else None)
        train_once(model, batch)
        outcome['trains'] = True
        predict_once(model, batch)
        outcome['predicts'] = True
    except Exception as error:  # whatever a model of another package raises
        text = ' '.join(str(error).split())
        outcome['error'] = f'{type(error).__name__}: {text}'[:600]
    return outcome


def adapted_config(family: str) -> Config:
    """Return the config of a family with EfficientViT in it."""
    special = SPECIAL.get(family) or Special('')
    config = Config.fromfile(config_of(family), import_custom_modules=special.channels is None)
    init_default_scope(config.get('default_scope') or family.partition('/')[0])
    model = config.model
    set_values(model, special.changes)
    if 'teacher_config' in model:
        model.teacher_config = str(folder('mmdet') / model.teacher_config)
    make_small(model)
    *outer, key = special.backbone.split('.')
    replace_backbone(value_at(model, '.'.join(outer)), key, channels=special.channels,
                     strides=special.strides,
                     adapted=[value_at(model, name) for name in special.adapted])
    set_values(model, special.after)
    return config


def make_small(model: ConfigDict) -> None:
    """Remove from a config what needs a download, several processes or large images."""
    for part in dicts_in(model):
        if isinstance(part.get('init_cfg'), dict) and part['init_cfg'].get('type') == 'Pretrained':
            part['init_cfg'] = None
        if part.get('pretrained'):
            part['pretrained'] = None
        if part.get('type') in ('SyncBN', 'MMSyncBN'):
            part['type'] = 'BN'
        if 'batch_augments' in part:
            part['batch_augments'] = None
        # Random weights score low.
        for name in ('score_thr', 'filter_thr'):
            if name in part:
                part[name] = 0.0
        if 'nms_pre' in part:
            part['nms_pre'] = min(part['nms_pre'], 100)  # others only cost time
        if part.get('type', '').endswith('SegDataPreProcessor'):
            part.update(size=(HEIGHT, WIDTH), size_divisor=None, test_cfg=None)
        if part.get('mode') == 'slide':
            part.update(crop_size=(HEIGHT, WIDTH), stride=(HEIGHT, WIDTH))


def built_model(config: Config) -> nn.Module:
    """Return the model of a config with random weights, after the checks before training."""
    model = MODELS.build(config.model)
    model.init_weights()
    check_operators(model)
    check_model(model, config.model)
    return model


def batch_for(config: Config, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return a batch with the annotations that the model of a config learns from."""
    height, width = size or (HEIGHT, WIDTH)
    parts = list(dicts_in(config.model))
    if config.get('default_scope') == 'mmseg':
        return segmentation_batch(first(dicts_in(config.model.decode_head), 'num_classes'),
                                  height, width)
    semantic = first((part['semantic_head'] for part in parts if part.get('semantic_head')),
                     'num_classes')
    things, stuff = first(parts, 'num_things_classes'), first(parts, 'num_stuff_classes')
    num_classes = min([part['num_classes'] for part in parts if 'num_classes' in part]
                      or [things or 1])
    batch = detection_batch(num_classes, height, width,
                            num_pixel_classes=things + stuff if stuff else semantic,
                            with_masks=any(part.get('pad_mask') or part.get('mask_head')
                                           for part in parts),
                            with_proposals='roi_head' in config.model
                            and not config.model.get('rpn_head'))
    if 'detector' not in config.model:
        return batch
    # Semi-supervised training takes images with annotations, and others in two augmentations.
    branches = ('sup', 'unsup_teacher', 'unsup_student')
    return {name: {branch: deepcopy(values) for branch in branches}
            for name, values in batch.items()}


def first(parts: Iterable[dict], name: str) -> Any:
    """Return the first value of a name in some dicts; None if there is none."""
    return next((part[name] for part in parts if name in part), None)


def train_once(model: Any, batch: dict[str, Any]) -> None:
    """Compute losses and gradients once.

    Raises:
        AssertionError: If they are not finite, or don't reach EfficientViT.
    """
    model.train()
    for name in ('epoch', 'iter'):  # set by the runner; the losses of some heads depend on it
        MessageHub.get_current_instance().update_info(name, 0)
    data = model.data_preprocessor(batch, training=True)
    total, log = model.parse_losses(model(**data, mode='loss'))
    assert total.isfinite(), f'the loss is not finite: {log}'
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), \
            f'the gradient of {name} is not finite'
    assert any(parameter.grad is not None and parameter.grad.any()
               for backbone in backbones(model) for parameter in backbone.parameters()), \
        'no gradient reaches the backbone'


def predict_once(model: Any, batch: dict[str, Any]) -> None:
    """Predict on the first image of a batch.

    Raises:
        AssertionError: If the result is none of a detector or a segmentor.
    """
    model.eval()
    one = {name: (values['sup'] if isinstance(values, dict) else values)[:1]
           for name, values in batch.items()}
    with torch.no_grad():
        data = model.data_preprocessor(one, training=False)
        results = model(**data, mode='predict')
    assert len(results) == 1, f'{len(results)} results for one image'
    check_result(results[0], one['inputs'][0].shape[1:])


def check_result(result: Any, shape: tuple[int, int]) -> None:
    """Check the type, the shapes and the values of a result.

    Raises:
        AssertionError: If something is wrong.
    """
    if hasattr(result, 'pred_sem_seg'):
        labels = result.pred_sem_seg.get('data', result.pred_sem_seg.get('sem_seg'))
        assert labels.shape[-2:] == shape, f'the label map has shape {tuple(labels.shape)}'
        return
    if hasattr(result, 'pred_panoptic_seg'):
        assert result.pred_panoptic_seg.sem_seg.shape[-2:] == shape
        return
    objects = result.pred_instances
    assert len(objects.scores) == len(objects.labels if 'labels' in objects else objects.scores)
    assert objects.scores.isfinite().all(), 'a score is not finite'
    if 'bboxes' in objects:
        assert objects.bboxes.shape == (len(objects.scores), 4)
        assert objects.bboxes.isfinite().all(), 'a box is not finite'
    if 'masks' in objects:
        assert objects.masks.shape[1:] == shape, f'masks have shape {tuple(objects.masks.shape)}'


def backbones(model: nn.Module) -> list[EfficientViT]:
    """Return all EfficientViTs in a model."""
    found = [module for module in model.modules() if isinstance(module, EfficientViT)]
    assert found, 'there is no EfficientViT in the model'
    return found


def dicts_in(config: Any) -> Iterator[dict]:
    """Yield all dicts in a config, the outer ones first."""
    if isinstance(config, dict):
        yield config
        for value in list(config.values()):
            yield from dicts_in(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from dicts_in(value)


def value_at(config: Any, name: str) -> Any:
    """Return the value with a dotted name."""
    for key in name.split('.') if name else ():
        config = config[int(key)] if key.isdigit() else config[key]
    return config


def set_values(config: Any, values: dict[str, Any]) -> None:
    """Set values with dotted names; None removes one."""
    for name, value in values.items():
        *outer, key = name.split('.')
        part = value_at(config, '.'.join(outer))
        part[int(key) if key.isdigit() else key] = value
