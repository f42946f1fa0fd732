"""Loading of label maps with checks of their values and size.

MMSegmentation casts all values to 8 bits: the value 300 of a 16-bit map becomes class 44. A value
beyond the classes fails in the loss, without the name of the file.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import mmcv
import numpy as np
import numpy.typing as npt
from mmengine import fileio
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS

from ..data.check.image_headers import read_header
from ..data.check.masks import (
    check_image_content,
    single_channel,
    turned,
    turned_by_own_orientation,
    values_sentence,
)
from ..errors import ConfigError, UserError

__all__ = ['CheckedLoadAnnotations', 'check_while_loading']

# With its module, so that other tools can use the config that a run saves in its work dir.
_CHECKED_TYPE = f'{__name__}.CheckedLoadAnnotations'


@TRANSFORMS.register_module()
class CheckedLoadAnnotations(LoadAnnotations):
    """LoadAnnotations of MMSegmentation that raises an error for a wrong label map.

    A label map is wrong if it can't be read, has several channels, a different size than its image,
    or values of no class. Other label maps are loaded exactly as by LoadAnnotations, but faster:
    through one table instead of a pass over the map for each class.

    Args:
        num_classes: Number of classes of the dataset; None accepts all values of 8 bits.
        ignore_index: Label of the pixels to ignore.
        **kwargs: Arguments of LoadAnnotations.
    """

    def __init__(self, *, num_classes: int | None, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Add ``gt_seg_map`` (H, W) uint8, with the classes from 0 on and the ignored label.

        Raises:
            UserError: If the label map is wrong; names the file.
            ConfigError: If the dataset has no label maps, or contradicts this transform.
        """
        image = results.get('img_path')
        if not results.get('seg_map_path'):
            raise ConfigError(f'the dataset of {image} has no label maps, but its pipeline loads '
                              'them: set its data_prefix.seg_map_path, or remove LoadAnnotations '
                              'from the pipeline')
        reduce_zero_label = results['reduce_zero_label']
        if self.reduce_zero_label not in (None, reduce_zero_label):
            raise ConfigError(
                f'LoadAnnotations has reduce_zero_label={self.reduce_zero_label}, but its dataset '
                f'has {reduce_zero_label}: remove it from the pipeline, and set it in the dataset')
        path = results['seg_map_path']
        table = _label_of_value(reduce_zero_label, results.get('label_map'))
        values = self._decode(path, image)
        size = results.get('ori_shape')
        if size is not None and image and values.shape == tuple(size[1::-1]) != tuple(size[:2]):
            header = read_header(image)
            if header.displayed_size == tuple(size[1::-1]):
                # Drawn on the pixels as stored, which loading the image has turned.
                values = turned(values, header.orientation)
        if size is not None and values.shape != tuple(size[:2]):
            raise UserError(
                f'the label map {path} is {values.shape[0]}x{values.shape[1]} (height x width), '
                f'but its image {image} is {size[0]}x{size[1]}: replace one of the two, or remove '
                'the image from the dataset')
        results['gt_seg_map'] = table[self._validate(values, table, path, reduce_zero_label)]
        results['seg_fields'].append('gt_seg_map')

    def _decode(self, path: str, image: str | None) -> npt.NDArray[Any]:
        """Return the numbers in a file, (H, W).

        Raises:
            UserError: If it is not a label map.
        """
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise UserError(f'can\'t read the label map {path} of the image {image}: '
                            f'{error.strerror or error}') from error
        check_image_content(content, path)
        reason = 'it is empty'
        if content:
            try:
                values = mmcv.imfrombytes(content, flag='unchanged', backend=self.imdecode_backend)
                if values is not None:
                    return turned_by_own_orientation(single_channel(values, path), content)
                reason = f'{self.imdecode_backend} can\'t decode it'
            except UserError:
                raise
            except Exception as error:  # each decoder has errors of its own
                # Pillow's message ends with the address of a buffer in memory.
                reason = ' '.join(str(error).partition(' <')[0].split()) or type(error).__name__
        raise UserError(f'the label map {path} is not an image, or is truncated ({reason}): '
                        f'download it again, or remove its image {image} from the dataset')

    def _validate(self, values: npt.NDArray[Any], table: npt.NDArray[np.uint8], path: str,
                        reduce_zero_label: bool) -> npt.NDArray[np.uint8]:
        """Return the values as 8 bits after checking that they are classes or ignored.

        Raises:
            UserError: If there are other values.
        """
        valid = np.ones(256, bool)
        if self.num_classes is not None:
            valid = (table < self.num_classes) | (table == self.ignore_index)
        if values.dtype == bool:
            values = values.astype(np.uint8)
        if values.dtype == np.uint8 and valid[values].all():
            return values
        wrong = [value for value in np.unique(values).tolist()
                 if value not in range(256) or not valid[int(value)]]
        if not wrong:
            return values.astype(np.uint8)
        raise UserError(values_sentence(path, wrong, np.flatnonzero(valid).tolist(),
                                        self.num_classes or 256, reduce_zero_label))


def check_while_loading(config: Config) -> None:
    """Replace LoadAnnotations of MMSegmentation in all datasets of a config by the checked one.

    Other loaders are left as they are.

    Args:
        config: The whole config, changed in place.
    """
    head = _decode_head(config)
    # Where a dataset doesn't name its classes, the head's number of classes is the limit. Losses of
    # several binary masks have no ignored label, but loading produces 255.
    ignored = head.get('ignore_index')
    checks = dict(num_classes=head.get('num_classes'),
                  ignore_index=255 if ignored is None else ignored)
    for split in ('train', 'val', 'test'):
        if config.get(f'{split}_dataloader'):
            _check_loaders(config[f'{split}_dataloader'], checks, config.get('default_scope'))


def _check_loaders(part: Any, checks: dict[str, Any], scope: str | None) -> None:
    if isinstance(part, Mapping):
        scope = part.get('_scope_') or scope
        if _is_plain_loader(part.get('type'), scope):
            part.update(type=_CHECKED_TYPE, **checks)  # type: ignore[attr-defined]
        if 'pipeline' in part:
            checks = {**checks, 'num_classes': _class_count(part) or checks['num_classes']}
        for value in part.values():
            _check_loaders(value, checks, scope)
    elif isinstance(part, list | tuple):
        for value in part:
            _check_loaders(value, checks, scope)


def _is_plain_loader(kind: Any, scope: str | None) -> bool:
    """Return True for MMSegmentation's LoadAnnotations and for the checked one."""
    if kind == _CHECKED_TYPE:
        return True
    if isinstance(kind, str):
        package, _, name = kind.rpartition('.')
        if (package.partition('.')[0] or scope) != 'mmseg' or 'LoadAnnotations' not in name:
            return False
        kind = TRANSFORMS.get(name)
    return kind in (LoadAnnotations, CheckedLoadAnnotations)


def _class_count(dataset: Mapping[str, Any]) -> int | None:
    """Return the number of classes in a dataset's config, or of its type; None if unknown."""
    kind = dataset.get('type')
    try:
        kind = DATASETS.get(kind) if isinstance(kind, str) else kind
        metainfo = kind._load_metainfo(deepcopy(dataset.get('metainfo')))  # type: ignore[union-attr]
    except Exception:  # building it will raise a better error; or it wraps another dataset
        return None
    return len(metainfo.get('classes') or ()) or None


def _decode_head(config: Config) -> Mapping[str, Any]:
    model = config.get('model') or {}
    while 'module' in model:  # of test-time augmentation
        model = model['module']
    head = model.get('decode_head') or {}
    return head[-1] if isinstance(head, list | tuple) else head


def _label_of_value(reduce_zero_label: bool, label_map: Mapping[int, int] | None
                    ) -> npt.NDArray[np.uint8]:
    """Return the label (256,) of each value in a file, as MMSegmentation maps them."""
    table = np.arange(256, dtype=np.uint8)
    if reduce_zero_label:
        table = np.roll(table, 1)  # 0 becomes 255, all others one less
        table[255] = 255
    if label_map:
        before = table.copy()
        for old, new in label_map.items():
            table[before == old] = new
    return table
