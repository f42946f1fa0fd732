"""The full check of the data of a config."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ..data.check import (
    CocoSource,
    DatasetCheck,
    Severity,
    SplitCheck,
    check_dataset,
    check_masks,
    read_headers,
)
from ..data.check.images import check_leakage, check_modes
from ..errors import ConfigError, UserError, translate_errors
from . import config as configure
from . import preflight
from .preflight.annotations import ConfiguredSource, compare_with_config, sources_of
from .preflight.datasets import leaves
from .preflight.files import segmentation_base

__all__ = ['check_data']

_SPLITS = ('train', 'val', 'test')


def check_data(config: str | os.PathLike[str] | Config, *,
               data_root: str | os.PathLike[str] | None = None,
               cfg_options: Mapping[str, Any] | None = None, decode: bool = False,
               skip_invalid: bool = False, ignore_unknown_categories: bool = False,
               progress: bool = False) -> DatasetCheck:
    """Check the train, val and test data of a config.

    Args:
        config: As in `evit_mm.train`.
        data_root: As in `evit_mm.train`.
        cfg_options: As in `evit_mm.train`.
        decode: Decode every image, instead of reading headers only.
        skip_invalid: Whether invalid objects may be left out.
        ignore_unknown_categories: As in `evit_mm.train`.
        progress: Whether to show progress bars.

    Raises:
        UserError: If a file or folder can't be read, or the config has no local data that can be
            checked.
    """
    with translate_errors():
        loaded = configure.load_config(config, cfg_options)
        if data_root:
            configure.set_data_root(loaded, data_root)
        init_default_scope(loaded.get('default_scope', 'mmengine'))
        coco: dict[str, CocoSource] = {}
        read: dict[str, list[ConfiguredSource]] = {}
        maps: list[SplitCheck] = []
        seen: set[Path] = set()
        faults: list[str] = []
        for split in _SPLITS:
            dataloader = loaded.get(f'{split}_dataloader')
            if not isinstance(dataloader, Mapping):
                continue
            try:
                preflight.check_files(dataloader, ignore_unknown_categories,
                                      scope=loaded.get('default_scope'))
            except ConfigError as error:  # other categories
                faults.append(str(error))
            sources = read[split] = sources_of(loaded, split)
            for number, source in enumerate(sources):
                if source.path not in seen:  # the test data are often those of the validation
                    coco[split if len(sources) == 1 else f'{split} {number + 1}'] = source
                seen.add(source.path)
            if not sources:
                maps += _check_label_maps(dataloader, split, seen, progress)
        if not coco and not maps:
            raise ConfigError('the config names no local data in a format that can be checked: '
                              'COCO\'s annotation files, or label maps')
        check = check_dataset(coco, decode=decode, skip_invalid=skip_invalid, progress=progress)
        faults += _compare_with_config(loaded, read, check)
        for fault in dict.fromkeys(faults):
            check.findings.add('config', Severity.ERROR, fault)
        check.splits += maps
        if len(maps) > 1:
            check.findings += check_leakage({split.name: list(split.files.values())
                                             for split in maps}, progress=progress)
    return check


def _compare_with_config(config: Config, read: Mapping[str, list[ConfiguredSource]],
                         check: DatasetCheck) -> list[str]:
    """Return what does not fit the config, and add the findings about further files."""
    faults = []
    checks = {os.path.realpath(split.coco.path): split.coco for split in check.splits if split.coco}
    for split, sources in read.items():
        if any(checks[os.path.realpath(source.path)].findings.of(Severity.ERROR)
               for source in sources):
            continue  # can't be compared
        try:
            others = compare_with_config(config, split, sources, checks)
        except UserError as error:
            faults.append(str(error))
            continue
        for other in others.values():
            check.findings += other.findings
    return faults


def _check_label_maps(dataloader: Mapping[str, Any], name: str, seen: set[Path], progress: bool
                      ) -> list[SplitCheck]:
    """Check the label maps of a dataloader's datasets."""
    dataset = DATASETS.build({**dataloader['dataset']})
    splits = []
    for leaf in leaves(dataset):
        if not segmentation_base(type(leaf)):
            continue
        infos = [leaf.get_data_info(index) for index in range(len(leaf))]
        pairs = {info['seg_map_path']: info['img_path'] for info in infos
                 if info.get('seg_map_path')}
        key = Path(next(iter(pairs), ''))
        if not pairs or key in seen:
            continue
        seen.add(key)
        split = SplitCheck(name, files={image: image for image in pairs.values()})
        split.findings += check_masks(
            list(pairs), classes=leaf.metainfo['classes'], images=pairs,
            zero_is_unlabelled=leaf.reduce_zero_label, values=getattr(leaf, 'values', None),
            title=f'the {name} dataset', progress=progress).findings
        split.headers = read_headers(pairs.values(), title=name, progress=progress)
        split.findings += check_modes(split.headers, name)
        splits.append(split)
    return splits
