"""Pictures of what a training feeds its model."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import set_random_seed

from evit_runtime.class_names import Colour
from evit_runtime.drawing import Image, write_picture

from ..data.image_paths import common_folder, path_below
from ..data.loading import check_images_while_loading
from ..errors import ConfigError, UserError, translate_errors
from ..report.pictures import contact_sheet
from . import config as configure
from .drawing import draw_truth
from .hooks.preflight import PreflightHook

__all__ = ['browse']

_PER_PAGE = 12


def browse(config: str | os.PathLike[str] | Config, *, out: str | os.PathLike[str] = 'browse',
           count: int = 24, split: str = 'train', data_root: str | os.PathLike[str] | None = None,
           seed: int = 0, cfg_options: Mapping[str, Any] | None = None,
           ignore_unknown_categories: bool = False, skip_invalid_objects: bool = False
           ) -> list[Path]:
    """Draw images with their boxes, masks or label maps as the pipeline of a dataset makes them.

    Args:
        config: As in `evit_mm.train`.
        out: Folder of the pages, ``train_1.png`` and so on, with twelve images each.
        count: Number of images, chosen at random.
        split: ``'train'``, ``'val'`` or ``'test'``.
        data_root: As in `evit_mm.train`.
        seed: Seed of the choice and of the augmentations.
        cfg_options: As in `evit_mm.train`.
        ignore_unknown_categories: As in `evit_mm.train`.
        skip_invalid_objects: As in `evit_mm.train`.

    Returns:
        The pages.

    Raises:
        UserError: If config or data has a mistake, or a page can't be written.
    """
    if count < 1:
        raise UserError(f'-n {count}: the number of images must be at least 1')
    folder = Path(out).expanduser()
    with translate_errors():
        config = configure.load_config(config, cfg_options)
        if not config.get(f'{split}_dataloader'):
            raise ConfigError(f'{config.filename or "the config"} has no {split}_dataloader')
        if data_root:
            configure.set_data_root(config, data_root)
        PreflightHook(ignore_unknown_categories, skip_invalid_objects=skip_invalid_objects
                      ).check_config(config, [split], repaired=folder / 'annotations')
        check_images_while_loading(config)
        if config.get('default_scope') == 'mmseg':
            from ..segmentation import check_while_loading

            check_while_loading(config)
        root = common_folder(configure.leaf_datasets(config[f'{split}_dataloader']))
        with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
            dataset = DATASETS.build(config[f'{split}_dataloader']['dataset'])
            set_random_seed(seed)
            chosen = np.random.default_rng(seed).permutation(len(dataset))[:count]
            drawn = list(_draw(dataset, chosen.tolist(), root))
    pages: list[Path] = []
    for first in range(0, len(drawn), _PER_PAGE):
        pictures, captions, legends = zip(*drawn[first:first + _PER_PAGE], strict=True)
        legend = {name: colour for one in legends for name, colour in one.items()}
        path = folder / f'{split}_{len(pages) + 1}.png'
        write_picture(path, contact_sheet(pictures, captions, legend))
        pages.append(path)
    return pages


def _draw(dataset: Any, indices: list[int], root: str | None
          ) -> Iterator[tuple[Image, str, dict[str, Colour]]]:
    """Yield a picture, its caption and the colours of its classes for each index."""
    for index in indices:
        item = dataset[index]
        sample = item['data_samples']
        picture, legend, count = draw_truth(_to_image(item['inputs']), sample, dataset.metainfo)
        noun = 'object' if 'gt_instances' in sample else 'class'
        plural = '' if count == 1 else 'es' if noun == 'class' else 's'
        height, width = item['inputs'].shape[-2:]
        yield picture, (f'{path_below(sample.img_path, root)}: {width}x{height}, {count} '
                        f'{noun}{plural}'), legend


def _to_image(inputs: Any) -> Image:
    """Return the input (3, H, W) of a model as an image (H, W, 3) uint8 in BGR."""
    values = np.asarray(inputs).transpose(1, 2, 0)
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 255):
        values = values.astype(np.float32)  # normalised in the pipeline
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-6) * 255
    return np.ascontiguousarray(values[..., :3].astype(np.uint8))
