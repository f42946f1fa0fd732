"""Find and read a config, and apply the options of a run to it."""

import difflib
import importlib.util
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..data.image_paths import common_folder
from ..errors import ConfigError, UserError, one_line
from ..models import EfficientViT

__all__ = ['TRACKERS', 'adapted_folder', 'add_test_time_augmentation', 'add_trackers',
           'draw_predictions', 'draw_validations', 'find_config', 'leaf_datasets', 'load_config',
           'set_data_root', 'set_from_scratch', 'set_image_size', 'use_amp',
           'without_pretrained_weights']

TRACKERS = {'tensorboard': 'TensorboardVisBackend', 'wandb': 'WandbVisBackend',
            'mlflow': 'MLflowVisBackend'}
"""mmengine's backends for experiment trackers, by the name of the tracker and its package."""

_IMAGES_OF_A_VALIDATION = 16

Edit = Callable[[Any], Any]
_PARTS = ('dataloader', 'evaluator')
_SIZES = ('scale', 'img_scale', 'crop_size', 'size')  # arguments of pipelines' steps
# Top-level keys that mmengine reads, whether a config has them or not.
_RUNNER_KEYS = frozenset(inspect.signature(Runner.__init__).parameters) | {
    'auto_scale_lr', 'custom_imports', 'env_cfg', 'log_level', 'runner_type', 'sync_bn',
    'tta_model', 'tta_pipeline'}
_PACKAGE = Path(__file__).resolve().parents[1]
# mmengine's place for the configs of an installed package, and the one in a checkout.
_CONFIG_FOLDERS = (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs')


def find_config(config: str | os.PathLike[str]) -> Path:
    """Return the file of a config.

    Args:
        config: A path, the name of one of this package's configs, with or without ``.py``, or one
            of another package, such as ``mmdet::yolox/yolox_nano_8xb8-300e_coco.py``.

    Raises:
        UserError: If there is no such file; it suggests packaged configs with a similar name.
    """
    try:
        path = Path(config).expanduser()
        if path.is_file():
            return path
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a null byte
        raise UserError(f'no such config: {config}') from None
    package, colons, inside = str(config).partition('::')
    if colons:
        return _find_in_package(package, inside)
    packaged = _packaged_configs()
    name = path.name.removesuffix('.py')
    if name in packaged and path.parent == Path():
        return packaged[name]
    similar = difflib.get_close_matches(name, packaged)
    raise UserError(f'no such config: {path}'
                    + (f'; did you mean {" or ".join(similar)}?' if similar else ''))


def _find_in_package(package: str, name: str) -> Path:
    """Return the file of a config of an installed package.

    Raises:
        UserError: If there is no such package or config.
    """
    module = importlib.util.find_spec(package) if package.isidentifier() else None
    if module is None or module.origin is None:
        raise UserError(f'no such config: {package}::{name}: the package {package} is not '
                        'installed')
    folder = Path(module.origin).parent / '.mim' / 'configs'
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        names = {str(file.relative_to(folder)) for file in folder.rglob('*.py')}
        similar = difflib.get_close_matches(name, names)
        raise UserError(f'no such config: {package}::{name}'
                        + (f'; did you mean {" or ".join(similar)}?' if similar else ''))
    return path


def _packaged_configs() -> dict[str, Path]:
    """Return the configs of this package by name."""
    folder = next((folder for folder in _CONFIG_FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob('*.py'))} if folder else {}


def load_config(config: str | os.PathLike[str] | Config,
                options: Mapping[str, Any] | None = None) -> Config:
    """Read a config and merge options into it.

    Args:
        config: A path, the name of a packaged config, or a config, which is copied.
        options: Values by dotted key, as ``--cfg-options`` gives them.

    Raises:
        UserError: If there is no such file, or it can't be read or merged.
    """
    if isinstance(config, Config):
        name, loaded = config.filename or 'the config', deepcopy(config)
    else:
        name = find_config(config)
        try:
            loaded = Config.fromfile(name)
        except UserError:
            raise
        except Exception as error:  # a config is Python: anything can go wrong in it
            raise ConfigError(f'{name} can\'t be read as a config: {one_line(error)}') from error
    for key in options or {}:
        if '.' not in key and key not in loaded and key not in _RUNNER_KEYS:
            similar = [path for path in _paths(loaded) if path.rpartition('.')[2] == key]
            raise ConfigError(
                f'--cfg-options {key}: {name} has nothing of that name, so that it would have no '
                'effect' + (f'; did you mean {" or ".join(similar[:4])}?' if similar else ''))
        if not _has_parent(loaded, key):
            print_log(f'--cfg-options {key}: the config has no such key, so this adds one; is it '
                      'spelt right?', logger='current', level=logging.WARNING)
    try:
        loaded.merge_from_dict(dict(options or {}))
    except (KeyError, TypeError, IndexError, ValueError, AssertionError) as error:
        raise ConfigError(f'--cfg-options does not fit {name}: {one_line(error)}') from error
    return loaded


def set_data_root(config: Config, root: str | os.PathLike[str]) -> None:
    """Point every dataset and evaluator of a config to another folder of the same layout.

    Args:
        config: Changed in place.
        root: The folder that replaces the config's ``data_root``.

    Raises:
        UserError: If there is no such folder.
    """
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f'no such folder: {root}; --data-root names the folder of the dataset')
    new = str(folder) + '/'
    keys = [f'{split}_{part}' for split in ('train', 'val', 'test') for part in _PARTS]
    old_roots = {str(dataset['data_root']) for key in keys if config.get(key)
                 for dataset in leaf_datasets(config[key]) if dataset.get('data_root')}
    old_roots.add(str(config.get('data_root') or ''))
    # The longest first: one root may lie inside another.
    prefixes = sorted((root.rstrip('/') + '/' for root in old_roots if root), key=len, reverse=True)

    def move(value: Any) -> Any:
        if isinstance(value, str):
            for prefix in prefixes:
                if value.startswith(prefix):
                    return new + value[len(prefix):]
        return value

    for key in keys:
        if config.get(key):
            config[key] = _edited(config[key], move)
            for dataset in leaf_datasets(config[key]):
                dataset['data_root'] = new
    if config.get('data_root'):
        config.data_root = new


def set_image_size(config: Config, size: int) -> None:
    """Scale the sizes of images in all pipelines of a config.

    Args:
        config: Changed in place; its ``image_size``, width and height, says what its pipelines are
            made for.
        size: Longer side of the images in pixels.

    Raises:
        UserError: If ``size`` is not positive.
        ConfigError: If the config has no ``image_size``, or a dataloader is made for another size.
    """
    if size < 1:
        raise UserError(f'--image-size must be at least 1, but is {size}')
    if not config.get('image_size'):
        raise ConfigError('--image-size needs a config whose pipelines follow from one size, with '
                          'image_size=(width, height) in it: change the sizes in the pipelines of '
                          'this one with --cfg-options')
    own = tuple(config.image_size)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        sizes = set(_sizes(config.get(key)))
        if sizes and own not in sizes:  # inherited, under pipelines of another config
            raise ConfigError(f'--image-size: image_size is {own} in the config, but the pipelines '
                              f'of its {key} have {", ".join(map(str, sorted(sizes)))}: set '
                              'image_size to the size that they are made for')
    ratio = size / max(own)

    def scaled(part: Any, key: str | None = None) -> Any:
        if isinstance(part, Mapping):
            return ConfigDict({key: scaled(value, key) for key, value in part.items()})
        if isinstance(part, list | tuple):
            return type(part)(scaled(value, key) for value in part)
        return round(part * ratio) if key in _SIZES and isinstance(part, int) else part

    config.image_size = scaled(config.image_size, _SIZES[0])
    for key in (*(f'{split}_dataloader' for split in ('train', 'val', 'test')), 'custom_hooks',
                'tta_pipeline'):
        if config.get(key):
            config[key] = scaled(config[key])
    if config.model.get('data_preprocessor'):
        config.model.data_preprocessor = scaled(config.model.data_preprocessor)


def _sizes(part: Any) -> Iterator[tuple[int, int]]:
    """Yield the widths and heights that steps of pipelines have anywhere in a part of a config."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if key in _SIZES and isinstance(value, list | tuple) and len(value) == 2 and all(
                    isinstance(side, int) for side in value):
                yield value[0], value[1]
            else:
                yield from _sizes(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _sizes(value)


def adapted_folder(config: Config, name: str, *, training: bool) -> Path:
    """Return the folder for what a run adapts of its data, such as repaired annotations.

    The config that a training left in its work dir names such files. A test writes its own to
    another folder, so that it never replaces them.
    """
    return Path(config.work_dir, *([] if training else ['test']), name)


def leaf_datasets(part: Any) -> Iterator[Any]:
    """Yield the datasets of a dataloader's config that read files, inside all wrappers."""
    if isinstance(part, Mapping):
        inner = [part[key] for key in ('dataset', 'datasets') if key in part]
        if not inner and ('data_root' in part or 'ann_file' in part or 'data_prefix' in part) \
                and 'pipeline' in part:
            yield part
        for value in inner:
            yield from leaf_datasets(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from leaf_datasets(value)


def set_from_scratch(config: Config) -> None:
    """Train from random weights: download nothing, and let BN learn its statistics.

    Raises:
        ConfigError: If the model has no EfficientViT.
    """
    backbones = list(_backbones(config.model))
    if not backbones:
        raise ConfigError('--from-scratch: the config has no backbone of type EfficientViT')
    config.load_from = None
    for backbone in backbones:
        backbone['init_cfg'] = None
        backbone['norm_eval'] = False
        backbone['frozen_stages'] = -1


def without_pretrained_weights(config: Config) -> None:
    """Remove the backbone's pretrained weights, as a checkpoint of the whole model follows."""
    for backbone in _backbones(config.model):
        backbone['init_cfg'] = None


def use_amp(config: Config) -> None:
    """Train with automatic mixed precision.

    Raises:
        UserError: If there is no CUDA GPU, which mmengine's AMP needs.
    """
    if not torch.cuda.is_available():
        raise UserError('--amp needs a CUDA GPU, and torch finds none: leave it out')
    config.optim_wrapper['type'] = 'AmpOptimWrapper'
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def draw_predictions(config: Config, folder: str | os.PathLike[str], *, score_thr: float = 0.3
                     ) -> None:
    """Write pictures of the predictions next to the ground truth while testing.

    Args:
        config: Changed in place.
        folder: Folder of the pictures.
        score_thr: Lowest score of the detections to draw.

    Raises:
        UserError: If ``score_thr`` is not between 0 and 1.
    """
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr {score_thr:g} must be between 0 and 1')
    _set_picture_hook(config, 'test', folder=str(Path(folder).expanduser().resolve()),
                      score_thr=score_thr)


def draw_validations(config: Config) -> None:
    """Write pictures of the first images of each validation while training.

    Raises:
        ConfigError: If the config has no validation.
    """
    if not config.get('val_dataloader'):
        raise ConfigError('--show-val needs a validation, and the config has no val_dataloader')
    _set_picture_hook(config, 'val', val_images=_IMAGES_OF_A_VALIDATION)


def _set_picture_hook(config: Config, split: str, **options: Any) -> None:
    """Put our hook in the place of MMDetection's or MMSegmentation's."""
    datasets = list(leaf_datasets(config.get(f'{split}_dataloader') or {}))
    hooks = dict(config.get('default_hooks') or {})
    hooks['visualization'] = dict(
        type='evit_mm.engine.hooks.pictures.PictureHook', image_root=common_folder(datasets),
        backend_args=next((dataset.get('backend_args') for dataset in datasets), None), **options)
    config.default_hooks = hooks


def add_trackers(config: Config, names: Sequence[str]) -> None:
    """Send losses and metrics to experiment trackers, as well as to the work dir.

    Args:
        config: Changed in place.
        names: ``'tensorboard'``, ``'wandb'``, ``'mlflow'``.

    Raises:
        UserError: If there is no such tracker, or its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f'no such tracker: {name}; choose from {", ".join(TRACKERS)}')
        if importlib.util.find_spec(name) is None:
            raise UserError(f'--tracker {name} needs the package {name}, which is not installed: '
                            f'pip install {name}')
        visualizer = dict(config.get('visualizer') or dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]))
        backends = list(visualizer.get('vis_backends') or [])
        if not any(TRACKERS[name] in str(backend.get('type')) for backend in backends):
            backend = dict(type=TRACKERS[name])
            if name == 'mlflow':
                # mmengine's default is a folder, which MLflow 3 refuses. This is MLflow's own.
                backend['tracking_uri'] = (os.environ.get('MLFLOW_TRACKING_URI')
                                           or 'sqlite:///mlflow.db')
            backends.append(backend)
        config.visualizer = dict(visualizer, vis_backends=backends)


def add_test_time_augmentation(config: Config) -> None:
    """Test on scaled and flipped copies of each image, merged by the config's ``tta_model``.

    A detection config without one gets MMDetection's default: a horizontal flip. Segmentation
    tests one image at a time, as copies of different sizes don't fit into one batch.

    Raises:
        ConfigError: If a segmentation config has no ``tta_model`` and ``tta_pipeline``.
    """
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in config]
    if missing and config.get('default_scope') != 'mmdet':
        raise ConfigError(f'--tta needs {" and ".join(missing)} in the config')
    config.setdefault('tta_model', dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)))
    for dataset in leaf_datasets(config.test_dataloader):
        dataset['pipeline'] = config.get('tta_pipeline') or _flip_pipeline(dataset['pipeline'])
    if config.tta_model['type'] == 'DetTTAModel':
        _evaluate_boxes_only(config)
    else:
        config.test_dataloader['batch_size'] = 1
    config.model = ConfigDict(**config.tta_model, module=config.model)


def _flip_pipeline(pipeline: list) -> list:
    *steps, pack = deepcopy(pipeline)
    pack['meta_keys'] = (*pack.get('meta_keys', ('img_id', 'img_path', 'ori_shape', 'img_shape',
                                                 'scale_factor')), 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def _evaluate_boxes_only(config: Config) -> None:
    evaluators = config.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        metric = evaluator.get('metric')
        if isinstance(metric, list | tuple) and 'segm' in metric:
            evaluator['metric'] = [name for name in metric if name != 'segm']
            print_log('--tta merges boxes only: masks are not evaluated', logger='current',
                      level=logging.WARNING)


def _backbones(model: Any) -> Iterator[Any]:
    if isinstance(model, Mapping):
        if model.get('type') in ('EfficientViT', EfficientViT):
            yield model
        for value in model.values():
            yield from _backbones(value)
    elif isinstance(model, list | tuple):
        for value in model:
            yield from _backbones(value)


def _edited(part: Any, edit: Edit) -> Any:
    """Return a copy of a part of a config, with ``edit`` applied to every leaf."""
    if isinstance(part, Mapping):
        return ConfigDict({key: _edited(value, edit) for key, value in part.items()})
    if isinstance(part, list | tuple):
        return type(part)(_edited(value, edit) for value in part)
    return edit(part)


def _paths(part: Any, path: str = '') -> Iterator[str]:
    """Yield the dotted keys of all values in a config."""
    items: Any = part.items() if isinstance(part, Mapping | Config) else \
        enumerate(part) if isinstance(part, list | tuple) else ()
    for key, value in items:
        inner = f'{path}.{key}' if path else str(key)
        yield inner
        yield from _paths(value, inner)


def _has_parent(config: Any, key: str) -> bool:
    *parents, _ = key.split('.')
    for name in parents:
        if isinstance(config, list | tuple) and name.isdigit() and int(name) < len(config):
            config = config[int(name)]
        elif isinstance(config, Mapping | Config) and name in config:
            config = config[name]
        else:
            return False
    return True
