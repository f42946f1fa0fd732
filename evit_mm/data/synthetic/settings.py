"""Settings of a generated dataset, and the names of its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

from ...errors import UserError

__all__ = ['FORMAT', 'GENERATOR', 'SPLITS', 'Settings', 'ade_pair', 'coco_annotations',
           'coco_image', 'validated_settings']

GENERATOR: Final = 'evit_mm.data.shapes'  # identifies datasets on disk, so it must never change
FORMAT: Final = 1  # to be increased with every change of the drawing: older datasets then differ
SPLITS: Final = ('train', 'val')

_MIN_SIDE, _MAX_SIDE = 64, 2048
_MAX_IMAGES: Final = 1_000_000


@dataclass(frozen=True)
class Settings:
    """Settings that determine every byte of a dataset.

    Attributes:
        layout: ``'coco'`` or ``'ade'``.
        num_train: Number of training images.
        num_val: Number of validation images.
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
        """Return settings from a value of JSON; None if it is something else."""
        if not isinstance(value, dict) or set(value) != {field.name for field in fields(cls)}:
            return None
        numbers = [number for name, number in value.items() if name != 'layout']
        if value['layout'] not in ('coco', 'ade') or not all(type(n) is int for n in numbers):
            return None
        return cls(**value)

    @property
    def image_size(self) -> tuple[int, int]:
        """The (height, width) in px around which the sizes of the images vary."""
        return self.height, self.width

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return self.num_train if split == 'train' else self.num_val

    def files(self) -> Iterator[str]:
        """Yield the paths of all data files, relative to the dataset's folder."""
        for split in SPLITS:
            for index in range(self.count(split)):
                if self.layout == 'coco':
                    yield coco_image(split, index)
                else:
                    yield from ade_pair(split, index)
            if self.layout == 'coco':
                yield coco_annotations(split)


def validated_settings(
    layout: str, num_train: int, num_val: int, image_size: tuple[int, int], seed: int
) -> Settings:
    """Return settings after checking that images of them can be drawn.

    Raises:
        UserError: If a number is out of range.
    """
    for name, count in (('num_train', num_train), ('num_val', num_val)):
        if not 1 <= count <= _MAX_IMAGES:
            raise UserError(f'{name} must be between 1 and {_MAX_IMAGES}, got {count}')
    height, width = image_size
    if not (_MIN_SIDE <= height <= _MAX_SIDE and _MIN_SIDE <= width <= _MAX_SIDE):
        raise UserError(f'the sides of the images must be between {_MIN_SIDE} and {_MAX_SIDE} px, '
                        f'got {height}x{width}')
    if max(height, width) > 3 * min(height, width):
        raise UserError('the longer side of the images must be at most 3 times the shorter one, '
                        f'got {height}x{width}')
    if not 0 <= seed < 2**32:
        raise UserError(f'seed must be between 0 and 2**32 - 1, got {seed}')
    return Settings(layout, int(num_train), int(num_val), int(height), int(width), int(seed))


def coco_image(split: str, index: int) -> str:
    """Return the path of an image in COCO's layout."""
    return f'{split}2017/{index + 1:012d}.jpg'


def coco_annotations(split: str) -> str:
    """Return the path of a split's annotations in COCO's layout."""
    return f'annotations/instances_{split}2017.json'


def ade_pair(split: str, index: int) -> tuple[str, str]:
    """Return the paths of an image and its label map in ADE20K's layout."""
    folder = 'training' if split == 'train' else 'validation'
    name = f'ADE_{split}_{index + 1:08d}'
    return f'images/{folder}/{name}.jpg', f'annotations/{folder}/{name}.png'
