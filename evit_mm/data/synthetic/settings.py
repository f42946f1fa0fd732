"""All that the bytes of a generated dataset depend on, and the names of its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

from ...errors import UserError

__all__ = ['FORMAT', 'GENERATOR', 'SPLITS', 'Settings', 'ade_pair', 'checked_settings',
           'coco_annotations', 'coco_image']

GENERATOR: Final = 'evit_mm.data.shapes'  # what folders on disk are known by: not to be renamed
FORMAT: Final = 1  # raise it whenever the drawing changes: older folders then count as different
SPLITS: Final = ('train', 'val')

_MIN_SIDE, _MAX_SIDE = 64, 2048
_MAX_IMAGES: Final = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        layout: 'coco' or 'ade'.
        num_train: Training images.
        num_val: Validation images.
        height: Height in px around which the images' heights vary.
        width: Width in px around which the images' widths vary.
        seed: Seed of all random numbers.
    """

    layout: str
    num_train: int
    num_val: int
    height: int
    width: int
    seed: int

    @classmethod
    def parse(cls, value: object) -> Settings | None:
        """Settings from JSON; None if it isn't one of this generator's."""
        if not isinstance(value, dict) or set(value) != {field.name for field in fields(cls)}:
            return None
        numbers = [number for name, number in value.items() if name != 'layout']
        if value['layout'] not in ('coco', 'ade') or not all(type(n) is int for n in numbers):
            return None
        return cls(**value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.height, self.width

    def count(self, split: str) -> int:
        """Images of a split."""
        return self.num_train if split == 'train' else self.num_val

    def files(self) -> Iterator[str]:
        """Paths of all data files, relative to the root."""
        for split in SPLITS:
            for index in range(self.count(split)):
                if self.layout == 'coco':
                    yield coco_image(split, index)
                else:
                    yield from ade_pair(split, index)
            if self.layout == 'coco':
                yield coco_annotations(split)


def checked_settings(
    layout: str, num_train: int, num_val: int, image_size: tuple[int, int], seed: int
) -> Settings:
    """Settings of numbers that can be drawn.

    Raises:
        UserError: If a number is out of range.
    """
    for name, count in (('num_train', num_train), ('num_val', num_val)):
        if not 1 <= count <= _MAX_IMAGES:
            raise UserError(f'{name} must be between 1 and {_MAX_IMAGES}, got {count}')
    height, width = image_size
    if not (_MIN_SIDE <= height <= _MAX_SIDE and _MIN_SIDE <= width <= _MAX_SIDE):
        raise UserError(f'the image size must be between {_MIN_SIDE} and {_MAX_SIDE} px a side, '
                        f'got {height}x{width}')
    if max(height, width) > 3 * min(height, width):
        raise UserError('the image size must not be longer than 3 times its shorter side, '
                        f'got {height}x{width}')
    if not 0 <= seed < 2**32:
        raise UserError(f'seed must be between 0 and 2**32 - 1, got {seed}')
    return Settings(layout, int(num_train), int(num_val), int(height), int(width), int(seed))


def coco_image(split: str, index: int) -> str:
    """Path of an image in COCO's layout."""
    return f'{split}2017/{index + 1:012d}.jpg'


def coco_annotations(split: str) -> str:
    """Path of a split's annotations in COCO's layout."""
    return f'annotations/instances_{split}2017.json'


def ade_pair(split: str, index: int) -> tuple[str, str]:
    """Paths of an image and its label map in ADE20K's layout."""
    folder = 'training' if split == 'train' else 'validation'
    name = f'ADE_{split}_{index + 1:08d}'
    return f'images/{folder}/{name}.jpg', f'annotations/{folder}/{name}.png'
