"""Label maps: how a config numbers and lists them, and what is in a sample of them.

`evit_mm.segmentation.labels` checks each label map when it is loaded.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from random import Random
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log
from torch import nn

from ...data.check import (
    ImageHeader,
    LabelCounts,
    Severity,
    check_labels,
    check_orientations,
    read_header,
)
from ...data.check.findings import shorten
from ...data.label_map_files import IMAGE_SUFFIXES, visible_files
from ...data.loading import CheckedLoadImage
from ...errors import ConfigError, UserError
from ..config import leaf_datasets
from .datasets import leaves, steps
from .files import dataset_class, is_local, is_remote, segmentation_base, unread_dataset
from .findings import log_findings

__all__ = ['check_label_maps', 'check_numbering', 'ignored_label']

_IGNORED = 255  # MMSegmentation's default
_USE_OURS = ('set type=\'LabelMapDataset\' in the dataset, and add \'evit_mm.segmentation\' to '
             'custom_imports')


def check_numbering(dataloader: Any, *, scope: str | None = None) -> None:
    """Check how datasets of MMSegmentation number the classes and list the images.

    Datasets that have classes of their own renumber label maps by the classes' names, and all list
    images of one suffix only.

    Args:
        dataloader: The config of one dataloader.
        scope: The config's ``default_scope``.

    Raises:
        ConfigError: If a dataset's type does not have the config's classes.
    """
    for dataset in leaf_datasets(dataloader):
        kind: Any = dataset_class(dataset, scope)
        base = segmentation_base(kind)
        if base is None or base.__name__ != 'BaseSegDataset' or is_remote(dataset):
            continue
        if kind.get_label_map.__func__ is base.get_label_map.__func__:
            _check_classes(kind, dataset)
        if kind.load_data_list is base.load_data_list:
            _warn_of_other_suffixes(kind, dataset)


def check_label_maps(dataset: Any, name: str, limit: int = 100, seconds: float = 10.0, *,
                     ignore_index: int = _IGNORED) -> None:
    """Check that label maps can be read, fit their images and teach the config's classes.

    Datasets whose pipeline loads no label maps, or loads them with a custom transform, are skipped.

    Args:
        dataset: A built dataset.
        name: ``'train'``, ``'val'`` or ``'test'``, for the log.
        limit: Number of label maps to check, spread over the dataset.
        seconds: Time after which the check stops early.
        ignore_index: Label of the pixels that do not count.

    Raises:
        UserError: If a label map does not fit; the message names the file. Also if all pixels are
            ignored or of one class.
        ConfigError: If the config contradicts itself about how to load them.
    """
    segmentation = [leaf for leaf in leaves(dataset) if segmentation_base(type(leaf))]
    sources = []
    for leaf in segmentation:
        load = _checked_loader(leaf, ignore_index)
        if load is not None and is_local(load.backend_args):
            sources += [(leaf, load, index) for index in range(len(leaf))]
    # Every beginning of a random order is spread over the whole dataset: time may run out.
    sample = Random(0).sample(sources, min(limit, len(sources)))
    if not sample:
        return
    counts = LabelCounts(_classes(dataset, segmentation[0]), total=len(sources))
    headers: dict[str, ImageHeader] = {}
    sizes: dict[str, tuple[int, int]] = {}
    end = time.monotonic() + seconds
    for leaf, load, index in sample:
        results = load(_with_image(leaf, index))
        counts.add(results['gt_seg_map'])
        image = results.get('img_path')
        if image and _turns_images(leaf):
            header = read_header(image)
            if header.orientation != 1:
                headers[image] = header
                sizes[image] = read_header(results['seg_map_path']).displayed_size
        if time.monotonic() > end:
            break
    print_log(f'{counts.checked} of the {len(sources)} label maps of the {name} dataset are valid'
              + ('' if counts.checked == len(sources) else '; the others are checked when they '
                 'are loaded'), logger='current')
    findings = check_labels(
        counts, f'the {name} dataset',
        zero_is_unlabelled=any(leaf.reduce_zero_label for leaf in segmentation),
        renumbered_by=next((type(leaf).__name__ for leaf in segmentation
                            if leaf.label_map and leaf.METAINFO.get('classes')), None),
        learns=name == 'train') if counts.classes else []
    findings = [*findings, *check_orientations(headers, sizes)]
    for finding in findings:
        if finding.severity is Severity.ERROR:
            raise UserError(finding.message)
    log_findings(findings)


def ignored_label(model: nn.Module) -> int:
    """Return the label that a segmentor's loss ignores."""
    head: Any = getattr(model, 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    label = getattr(head, 'ignore_index', None)
    return _IGNORED if label is None else label


def _check_classes(kind: Any, dataset: Mapping[str, Any]) -> None:
    """Check that a dataset's type has the classes of its config, and warn if it renumbers them.

    Raises:
        ConfigError: If it does not have them.
    """
    own = list(kind.METAINFO.get('classes') or ())
    # Accepts all forms that a config may use: a list, or a file of names.
    classes = kind._load_metainfo(deepcopy(dict(dataset.get('metainfo') or {}))).get('classes')
    classes = list(classes or ())
    if not own or not classes or classes == own:
        return
    unknown = [name for name in classes if name not in own]
    if unknown:
        raise ConfigError(
            f'metainfo.classes of a dataset of type {kind.__name__}: its label maps have that '
            f'type\'s {len(own)} classes, and {shorten(map(repr, unknown))} '
            f'{"is" if len(unknown) == 1 else "are"} not among them; for label maps with classes '
            f'of your own, {_USE_OURS}')
    shown = shorten((f'{own.index(name)} ({name}) becomes {i}' for i, name in enumerate(classes)))
    print_log(
        f'{kind.__name__} renumbers label maps by the names in metainfo.classes: {shown}; its '
        f'{len(own) - len(classes)} other classes are ignored. If the numbers in your label maps '
        f'are those of metainfo.classes already, {_USE_OURS}', logger='current',
        level=logging.WARNING)


def _warn_of_other_suffixes(kind: Any, dataset: Mapping[str, Any]) -> None:
    """Warn of images that are passed over because of their suffix."""
    unread = unread_dataset(kind, dataset)
    if unread is None:
        return
    folder = unread.data_prefix.get('img_path') or ''
    if unread.ann_file and not os.path.isdir(unread.ann_file) or not os.path.isdir(folder):
        return
    maps = unread.data_prefix.get('seg_map_path') or ''
    same = os.path.realpath(maps) == os.path.realpath(folder)
    files = [file for file in visible_files(folder, IMAGE_SUFFIXES, None if same else maps)
             if not (same and file.endswith(unread.seg_map_suffix))]
    others = [file for file in files if not file.endswith(unread.img_suffix)]
    if others:
        suffixes = Counter(os.path.splitext(file)[1] for file in others)
        print_log(
            f'{len(others)} of the {len(files)} images in {folder} are passed over: '
            f'{kind.__name__} reads those that end in {unread.img_suffix!r}, and '
            + ', '.join(f'{count} end in {suffix!r}' for suffix, count in suffixes.most_common(5))
            + f'; to use them too, {_USE_OURS}', logger='current', level=logging.WARNING)


def _classes(dataset: Any, leaf: Any) -> Sequence[str]:
    metainfo = getattr(dataset, 'metainfo', None) or leaf.metainfo
    return list(metainfo.get('classes') or ())


def _checked_loader(leaf: Any, ignore_index: int) -> Any:
    """Return a transform that loads a dataset's label maps as its pipeline does, with checks.

    Returns:
        CheckedLoadAnnotations: None if the pipeline has no loader that it could replace.
    """
    from mmseg.datasets.transforms import LoadAnnotations  # detection does without mmseg

    from ...segmentation import CheckedLoadAnnotations

    for step in steps(leaf.pipeline):
        if isinstance(step, CheckedLoadAnnotations):
            return step
        if type(step) is LoadAnnotations:  # in a runner whose config was not changed beforehand
            return CheckedLoadAnnotations(
                num_classes=len(leaf.metainfo.get('classes') or ()) or None,
                ignore_index=ignore_index, reduce_zero_label=step.reduce_zero_label,
                imdecode_backend=step.imdecode_backend, backend_args=step.backend_args)
    return None


def _with_image(leaf: Any, index: int) -> dict[str, Any]:
    """Return the input of a label map's loader, with the size of its image where that is known.

    Raises:
        UserError: If the image can't be read.
    """
    info = leaf.get_data_info(index)
    step = _image_loader(leaf)
    if step is None:
        return info
    try:
        return step(info) or info
    except UserError:
        raise
    except Exception as error:  # each decoder raises its own types
        raise UserError(f'the image {info["img_path"]} can\'t be read '
                        f'({type(error).__name__}): fetch it again, or remove it from the '
                        'dataset') from error


def _image_loader(leaf: Any) -> Any:
    """Return the transform that loads a dataset's images; None for types that we don't know."""
    # Any other image loader may depend on the steps before it.
    return next((step for step in steps(leaf.pipeline)
                 if type(step) in (LoadImageFromFile, CheckedLoadImage)), None)


def _turns_images(leaf: Any) -> bool:
    """Return whether a dataset's images are turned by EXIF's orientation when they are loaded."""
    step = _image_loader(leaf)
    return step is not None and step.color_type in ('color', 'grayscale') \
        and step.imdecode_backend in (None, 'cv2', 'pillow')
