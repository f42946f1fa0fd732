"""Generate a small, learnable dataset in COCO's layout or in ADE20K's.

Both have the difficulties of the originals (crowd regions, tiny objects, portrait and landscape
images, unlabelled pixels), so that the same configs and the same evaluation run on them.

An image depends on the seed, the split, its index and the image size only: a larger dataset
contains the same images, byte for byte, as a smaller one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .folder import ensure_dataset
from .layouts import write_ade, write_coco
from .scenes import SCENE_CLASSES
from .settings import SPLITS, Settings, validated_settings
from .shapes import SHAPE_CLASSES

__all__ = ['PreparedData', 'generate_ade', 'generate_coco']


@dataclass(frozen=True)
class PreparedData:
    """A dataset on disk.

    Attributes:
        root: The dataset's folder.
        layout: ``'coco'`` or ``'ade'``.
        reused: True if the folder already contained exactly this dataset.
        num_images: Number of images of each split (``'train'``, ``'val'``).
        num_annotations: Number of annotations of each split, with crowd regions; empty for
            ``'ade'``.
        classes: Class names.
    """

    root: Path
    layout: str
    reused: bool
    num_images: dict[str, int]
    num_annotations: dict[str, int]
    classes: tuple[str, ...]


def generate_coco(
    root: str | os.PathLike[str],
    *,
    num_train: int = 400,
    num_val: int = 100,
    image_size: tuple[int, int] = (192, 192),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> PreparedData:
    """Write a detection dataset in COCO's layout: coloured shapes on cluttered backgrounds.

    The files are ``train2017/*.jpg``, ``val2017/*.jpg`` and
    ``annotations/instances_{train,val}2017.json``. A folder that already contains exactly this
    dataset is left as it is; an interrupted generation is repeated.

    Args:
        root: Folder to write; created if missing.
        num_train: Number of training images.
        num_val: Number of validation images.
        image_size: (height, width) in px around which the images' sizes vary.
        seed: Seed of all random numbers; the same seed gives the same files, byte for byte.
        overwrite: Replace a dataset with other settings, or write into a folder that contains
            other files. Files that the generator did not make are never deleted or replaced.
        progress: Show a progress bar on stderr.

    Returns:
        The dataset.

    Raises:
        UserError: If a number is out of range, or the folder can't or must not be written.
    """
    settings = validated_settings('coco', num_train, num_val, image_size, seed)
    return _generate(Path(root), settings, SHAPE_CLASSES, write_coco, overwrite, progress)


def generate_ade(
    root: str | os.PathLike[str],
    *,
    num_train: int = 400,
    num_val: int = 100,
    image_size: tuple[int, int] = (192, 192),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> PreparedData:
    """Write a segmentation dataset in the layout of ADEChallengeData2016: plain scenes.

    The files are ``images/{training,validation}/*.jpg`` and
    ``annotations/{training,validation}/*.png``. The label maps contain 0 (no class) and the keys of
    `SCENE_CLASSES`, as ``reduce_zero_label=True`` expects them.

    Args:
        root: As in `generate_coco`, like all other arguments.

    Returns:
        The dataset.

    Raises:
        UserError: As in `generate_coco`.
    """
    settings = validated_settings('ade', num_train, num_val, image_size, seed)
    classes = tuple(SCENE_CLASSES.values())
    return _generate(Path(root), settings, classes, write_ade, overwrite, progress)


def _generate(
    root: Path,
    settings: Settings,
    classes: tuple[str, ...],
    write_layout: Callable[[Path, Settings, Callable[[], object]], dict[str, int]],
    overwrite: bool,
    progress: bool,
) -> PreparedData:
    num_images = {split: settings.count(split) for split in SPLITS}

    def write() -> dict[str, int]:
        with tqdm(total=sum(num_images.values()), unit='img', disable=not progress,
                  desc=f'{settings.layout} shapes') as bar:
            return write_layout(root, settings, bar.update)

    num_annotations, reused = ensure_dataset(root, settings, classes, write, overwrite=overwrite)
    return PreparedData(root, settings.layout, reused, num_images, num_annotations, classes)
