"""Loading of images with checks of their file and size.

OpenCV gives half a picture for a file that was cut off, and turns photographs by EXIF's orientation
even if their objects were annotated on the pixels as stored. Neither says a word.
"""

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import mmcv
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from evit_runtime.image_files import is_cut_off

from ..errors import UserError
from .image_limits import too_many_pixels

__all__ = ['CheckedLoadImage', 'check_images_while_loading', 'skip_images_that_fail',
           'take_skipped_images']

# With its module, so that other tools can use the config that a run saves in its work dir.
_CHECKED_TYPE = f'{__name__}.CheckedLoadImage'
_skipped: list[str] = []  # messages of the images that this process has passed over


@TRANSFORMS.register_module()
class CheckedLoadImage(LoadImageFromFile):
    """LoadImageFromFile of mmcv that raises an error for a wrong image.

    An image is wrong if it can't be read or decoded, was cut off, or has another size than its
    dataset says. Where only the image as stored has that size, EXIF's orientation is ignored: its
    objects were annotated so. Other images are loaded exactly as by LoadImageFromFile.

    Args:
        skip: Pass over an image that is wrong: the dataset takes another one at random.
        **kwargs: Passed to LoadImageFromFile.
    """

    def __init__(self, *args: Any, skip: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip = skip

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Add ``img`` (H, W, C), ``img_shape`` and ``ori_shape``.

        Returns:
            dict: ``results``; None for an image that can't be loaded, with ``ignore_empty`` or
            ``skip``.

        Raises:
            UserError: If the image is wrong; names the file.
        """
        path = results['img_path']
        try:
            image = self._load(path, _annotated_size(results))
        except UserError as error:
            if self.skip:
                _skipped.append(str(error))
                return None
            if self.ignore_empty:
                return None
            raise
        results['img'] = image.astype('float32') if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _load(self, path: str, size: tuple[int, int] | None) -> Any:
        """Return an image (H, W, C) of a height and width, if they are known."""
        try:
            content = fileio.get(path, backend_args=self.backend_args)
        except (OSError, ValueError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise UserError(f'can\'t read the image {path}: {reason}') from error
        if is_cut_off(content):
            raise UserError(f'the image {path} was cut off: its file ends too early; copy it '
                            'again, or remove it from the dataset')
        image = self._decode(content, path, self.color_type)
        if size and image.shape[:2] != size and image.shape[1::-1] == size \
                and 'ignore_orientation' not in self.color_type:
            flag = {'color': 'color_ignore_orientation',
                    'grayscale': 'grayscale_ignore_orientation'}.get(self.color_type)
            if flag and self.imdecode_backend in (None, 'cv2', 'pillow'):
                image = self._decode(content, path, flag)
        if size and image.shape[:2] != size:
            raise UserError(
                f'the image {path} is {image.shape[1]}x{image.shape[0]} (width x height), but its '
                f'annotations are for {size[1]}x{size[0]}: correct width and height in the '
                'annotation file, or use the image that was annotated')
        return image

    def _decode(self, content: bytes, path: str, flag: str) -> Any:
        reason = 'it is empty' if not content else f'{self.imdecode_backend} can\'t decode it'
        large = too_many_pixels(content)
        if large:
            reason = large
        elif content:
            try:
                image = mmcv.imfrombytes(content, flag=flag, backend=self.imdecode_backend)
                if image is not None:
                    return image
            except Exception as error:  # each decoder has errors of its own
                # Pillow's message ends with the address of a buffer in memory.
                reason = ' '.join(str(error).partition(' <')[0].split()) or type(error).__name__
        raise UserError(f'the image {path} can\'t be decoded ({reason}): replace it, or remove it '
                        'from the dataset')


def check_images_while_loading(config: Config) -> None:
    """Replace LoadImageFromFile in all datasets of a config by the checked one.

    Other loaders are left as they are, and so are those that read from ``file_client_args``.

    Args:
        config: The whole config, changed in place.
    """
    replaced = 0
    for split in ('train', 'val', 'test'):
        for step in _mappings(config.get(f'{split}_dataloader')):
            kind = step.get('type')
            if (kind is LoadImageFromFile or isinstance(kind, str)
                    and kind.rpartition('.')[2] == 'LoadImageFromFile') \
                    and not step.get('file_client_args'):
                step['type'] = _CHECKED_TYPE
                replaced += 1
    print_log(f'{replaced} transforms check the images that they load', logger='current',
              level=logging.DEBUG)


def skip_images_that_fail(config: Config) -> None:
    """Let the training of a config go on without images that can't be loaded.

    Args:
        config: The whole config, changed in place; its loaders are replaced as by
            `check_images_while_loading`.
    """
    check_images_while_loading(config)
    for step in _mappings(config.get('train_dataloader')):
        if step.get('type') == _CHECKED_TYPE:
            step['skip'] = True


def take_skipped_images() -> list[str]:
    """Return a message for each image that this process has passed over since the last call."""
    messages = list(_skipped)
    _skipped.clear()
    return messages


def _mappings(part: Any) -> Iterator[MutableMapping[str, Any]]:
    if isinstance(part, MutableMapping):
        yield part
        for value in part.values():
            yield from _mappings(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _mappings(value)


def _annotated_size(results: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width that the dataset gives for an image, if it does."""
    height, width = results.get('height'), results.get('width')
    return (height, width) if height and width else None
