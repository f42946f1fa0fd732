"""Find a user's mistakes before training or testing starts, and say each in one sentence."""

import json
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..checkpoint import strip_containers, translate_backbone_state
from ..errors import CheckpointError, ConfigError, UserError
from ..models import EfficientViT
from ..models.efficientvit import describe_weights
from .configure import leaf_datasets

__all__ = ['built_dataset', 'check_checkpoint', 'check_classes', 'check_files',
           'log_batch_size']

_HOW_TO_GET_DATA = {
    'CocoDataset': 'get COCO 2017 from cocodataset.org (train2017.zip, val2017.zip and '
                   'annotations_trainval2017.zip, unpacked into one folder) and name that folder '
                   'with --data-root',
    'ADE20KDataset': 'get ADEChallengeData2016.zip from the MIT scene parsing benchmark '
                     '(sceneparsing.csail.mit.edu) and name the unpacked folder with --data-root',
}
_FALLBACK = ('name the folder that holds the data set with --data-root, or set data_root in the '
             'config')
_CLASS_AGNOSTIC = ('rpn_head', 'semantic_head')
_TRY = 'tools/prepare_data.py shapes generates a small set to try things with'


def check_files(dataloader: Any, ignore_unknown_categories: bool = False) -> None:
    """Check that what a dataloader's config names is there.

    Args:
        dataloader: The config of one dataloader.
        ignore_unknown_categories: As in `check_categories`.

    Raises:
        UserError: If a folder or annotation file is missing; it says how to get the data.
    """
    for dataset in leaf_datasets(dataloader):
        kind = str(dataset.get('type', '')).rpartition('.')[-1]
        how = _HOW_TO_GET_DATA.get(kind, _FALLBACK)
        if _is_remote(dataset):
            continue  # mmengine's storage backend reports what is missing
        root = Path(dataset.get('data_root') or '')
        if not root.is_dir():
            raise UserError(f'the data set is not there: {root.absolute()} does not exist; {how}; '
                            f'{_TRY}')
        annotations = dataset.get('ann_file')
        if annotations and not (root / annotations).is_file():
            raise UserError(f'{root / annotations} does not exist; {how}; {_TRY}')
        if annotations and _is_coco(kind):
            check_categories(root / annotations, dataset, ignore_unknown_categories)
        for prefix in (dataset.get('data_prefix') or {}).values():
            folder = root / prefix if prefix else root
            if not folder.is_dir():
                raise UserError(f'the folder {folder} does not exist; {how}; {_TRY}')
            if not any(folder.iterdir()):
                raise UserError(f'the folder {folder} is empty; {how}; {_TRY}')


def check_categories(path: Path, dataset: Mapping[str, Any], ignore_unknown: bool = False
                     ) -> None:
    """Check that the categories of a COCO file are the classes that the config knows.

    MMDetection numbers labels by the file's order and passes over categories that it does not
    know, so a difference in names or order gives wrong labels without a word.

    Args:
        path: The annotation file.
        dataset: The data set's config.
        ignore_unknown: Let the file have categories that the config does not know.

    Raises:
        ConfigError: If names or order differ.
        UserError: If the file is not a COCO annotation file.
    """
    classes = _classes_of(dataset)
    if classes is None:
        return
    try:
        names = [str(category['name']) for category in _read_categories(path)]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f'{path} is not a COCO annotation file, or it is cut off: '
                        f'{_first_line(error)}') from error
    mend = (f'set metainfo=dict(classes={tuple(names)!r}) in the config\'s data sets and '
            f'num_classes={len(names)} in its heads')
    unknown = [name for name in names if name not in classes]
    if unknown and ignore_unknown:
        names = [name for name in names if name in classes]
    elif unknown:
        raise ConfigError(f'{path} has categories that the config does not know: '
                          f'{", ".join(unknown[:5])}{" ..." if len(unknown) > 5 else ""}; '
                          f'{mend}, or pass --ignore-unknown-categories to train without them')
    absent = [name for name in classes if name not in names]
    if absent:
        raise ConfigError(f'the config\'s classes {absent[:5]} are not among the categories of '
                          f'{path}, which would shift the labels of the others; {mend}')
    if names != list(classes):
        raise ConfigError(f'the categories of {path} stand in another order than the config\'s '
                          f'classes, which would mix up the labels; {mend}')


def built_dataset(build: Callable[[], Any], name: str) -> Any:
    """Build a data set and check it: it has images, and they are there.

    Args:
        build: Gives an mmengine data set.
        name: ``'train'``, ``'val'`` or ``'test'``, for the error.

    Raises:
        UserError: If it can't be read, nothing is left to read, or an image file is missing.
    """
    try:
        dataset = build()
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, AssertionError, IndexError, OSError) as error:
        if 'at least one array to concatenate' not in str(error):  # an empty list of images
            raise UserError(f'the {name} data set can\'t be read: {type(error).__name__}: '
                            f'{_first_line(error)}') from error
        dataset = []
    if len(dataset) == 0:
        raise UserError(f'the {name} data set has no images that can be used: its annotation file '
                        'lists none, or none has an object of the config\'s classes')
    _check_images(dataset, name)
    return dataset


def _check_images(dataset: Any, name: str) -> None:
    listings: dict[str, dict[str, int]] = {}
    missing: list[str] = []
    total = 0
    for path in _image_paths(dataset):
        total += 1
        folder, file = os.path.split(path)
        if folder not in listings:  # one listing is faster than a look at every file
            listings[folder] = {entry.name: entry.stat().st_size for entry in os.scandir(folder)
                                if entry.is_file()} if os.path.isdir(folder) else {}
        if not listings[folder].get(file):
            missing.append(path)
    if missing:
        raise UserError(f'{len(missing)} of the {total} images of the {name} data set are missing '
                        f'or empty, the first is {missing[0]}: fetch them, or take them out of '
                        'the annotations')


def check_classes(model: nn.Module, dataset: Any, name: str) -> None:
    """Check that the heads predict as many classes as the data set has.

    Raises:
        ConfigError: If a head has another number.
    """
    metainfo = getattr(dataset, 'metainfo', {})
    classes = metainfo.get('classes')
    if classes is None or 'thing_classes' in metainfo:
        return  # panoptic heads have counts of their own
    for path, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        is_head = 'head' in path and not any(name in path for name in _CLASS_AGNOSTIC)
        if is_head and isinstance(count, int) and count != len(classes):
            raise ConfigError(f'{path} predicts {count} classes, but the {name} data set has '
                              f'{len(classes)}: set model.{path}.num_classes={len(classes)}')


def check_checkpoint(model: nn.Module, source: str, *, purpose: str) -> None:
    """Check that a checkpoint is one of this model, before anything is loaded.

    Args:
        model: A detector or segmentor.
        source: File or address.
        purpose: ``'test'`` and ``'resume'`` need every tensor; ``'finetune'`` lets parts outside
            the backbone differ, and says which.

    Raises:
        CheckpointError: If it can't be read, holds another model, or can't be resumed from.
    """
    checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
    state = strip_containers(checkpoint, source)
    if purpose == 'resume':
        lacking = [key for key in ('meta', 'message_hub', 'optimizer') if key not in checkpoint]
        if lacking:
            raise CheckpointError(f'{source} can\'t be resumed from, as it has no '
                                  f'{", ".join(lacking)}: it holds weights only; start from them '
                                  f'with --cfg-options load_from={source}')
    wanted = model.state_dict()
    for path, module in model.named_modules():
        if isinstance(module, EfficientViT):
            state = _checked_backbone(module, f'{path}.' if path else '', state, source, purpose)
    differences = _differences(state, wanted)
    if differences and purpose != 'finetune':
        raise CheckpointError(
            f'{source} is not a checkpoint of this config\'s model: {differences}')
    if not any(key in wanted and wanted[key].shape == state[key].shape for key in state):
        raise CheckpointError(f'{source} has nothing in common with this config\'s model: '
                              f'{differences}')
    if differences:
        print_log(f'{source} fits in part, the rest starts anew: {differences}', logger='current',
                  level=logging.WARNING)


def _checked_backbone(backbone: EfficientViT, prefix: str, state: dict[str, Tensor], source: str,
                      purpose: str) -> dict[str, Tensor]:
    """The state with the backbone's part under our names.

    Raises:
        CheckpointError: If that part is of another backbone, or missing.
    """
    part = {key.removeprefix(prefix): value for key, value in state.items()
            if key.startswith(prefix)}
    translated, report = translate_backbone_state(part, backbone.state_dict(), source)
    if not part and describe_weights(state) != 'another model':
        raise CheckpointError(
            f'{source} holds a backbone alone ({describe_weights(state)}), not a whole model: '
            'name it in model.backbone.init_cfg.checkpoint')
    if not report.complete and (part or purpose != 'finetune'):
        raise CheckpointError(
            f'{source} is not a checkpoint of this config\'s model: its backbone looks like '
            f'{describe_weights(part)}, the config\'s is {backbone.arch_name} ({report})')
    if report.resized and purpose == 'resume':
        raise CheckpointError(f'{source} can\'t be resumed from with other window_sizes than it '
                              f'was trained with ({report.resized[0]})')
    if part:
        print_log(f'{source}: backbone: {report}', logger='current')
    return {key: value for key, value in state.items() if not key.startswith(prefix)} | {
        prefix + key: value for key, value in translated.items()}


def log_batch_size(config: Any, world_size: int) -> None:
    """Print the effective batch size and learning rate, and warn when they are off the base."""
    batch = config.train_dataloader['batch_size']
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    effective = batch * world_size * accumulated
    rate = config.optim_wrapper['optimizer']['lr']
    text = (f'effective batch size {effective} ({world_size} process{"es" * (world_size > 1)} x '
            f'{batch} images{f" x {accumulated} accumulated steps" if accumulated > 1 else ""})')
    scaling = config.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if scaling.get('enable') and base:
        # mmengine scales by what one step sees and leaves accumulation out.
        text += f', learning rate {rate * batch * world_size / base:g} (scaled from {rate:g})'
    else:
        text += f', learning rate {rate:g}'
    print_log(text, logger='current')
    if base and effective != base and not scaling.get('enable'):
        print_log(f'the learning rate of this config is for a batch of {base} images, not '
                  f'{effective}: pass --auto-scale-lr, or set optim_wrapper.optimizer.lr '
                  f'(in proportion: {rate * effective / base:g})', logger='current',
                  level=logging.WARNING)


def _differences(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    lists = {
        'missing': [key for key in wanted if key not in state
                    and not key.endswith('num_batches_tracked')],
        'unexpected': [key for key in state if key not in wanted],
        'of another shape': [f'{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}'
                             for key in state if key in wanted
                             and state[key].shape != wanted[key].shape],
    }
    return '; '.join(f'{len(keys)} tensors {what} ({", ".join(keys[:3])}'
                     f'{", ..." if len(keys) > 3 else ""})' for what, keys in lists.items() if keys)


def _is_remote(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set's config reads from storage other than local disks."""
    return not _is_local(dataset.get('backend_args')) or any(
        '://' in str(dataset.get(key) or '') for key in ('data_root', 'ann_file'))


def _is_local(backend_args: Mapping[str, Any] | None) -> bool:
    return (backend_args or {}).get('backend', 'local') in ('local', 'disk')


def _is_coco(kind: str) -> bool:
    """Whether a data set's type reads categories as CocoDataset does."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    found: Any = DATASETS.get(kind)
    return isinstance(found, type) and issubclass(found, CocoDataset) and \
        getattr(found, 'load_data_list', None) is CocoDataset.load_data_list


def _image_paths(dataset: Any) -> Iterator[str]:
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if any(part is not None for part in inner):
        for part in inner:
            yield from _image_paths(part)
    elif hasattr(dataset, 'get_data_info') and _is_local(getattr(dataset, 'backend_args', None)):
        for index in range(len(dataset)):
            path = dataset.get_data_info(index).get('img_path', '')
            if path and '://' not in path:
                yield path


def _classes_of(dataset: Mapping[str, Any]) -> Sequence[str] | None:
    """The classes that a data set's config asks for, or its type's own."""
    from mmdet.registry import DATASETS

    kind = DATASETS.get(str(dataset.get('type')).rpartition('.')[-1])
    # Knows the forms that a config may use: a list, one name, a file of names.
    metainfo = kind._load_metainfo(deepcopy(dict(dataset.get('metainfo') or {})))
    return metainfo.get('classes')


def _read_categories(path: Path) -> list[dict]:
    """The categories of a COCO file without reading its hundreds of megabytes of annotations."""
    if path.stat().st_size == 0:
        raise ValueError('it is empty')
    with path.open('rb') as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b'"categories"')
        while start >= 0:
            text = content[start + len(b'"categories"'):start + 4_000_000].decode(errors='replace')
            after_colon = text.lstrip()
            if after_colon.startswith(':'):
                found, _ = json.JSONDecoder().raw_decode(after_colon[1:].lstrip())
                if isinstance(found, list):
                    return found
            start = content.find(b'"categories"', start + 1)
    raise ValueError('it has no list of categories')


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
