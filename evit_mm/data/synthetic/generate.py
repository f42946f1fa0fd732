"""Generate a small, learnable dataset in COCO's layout or in ADE20K's.

Nothing is downloaded, and both hold what the originals hold (crowd regions, tiny objects,
portrait and landscape images, unlabelled pixels), so that the same configs and the same
evaluation run on them.

An image depends on (seed, split, its index, the requested size) alone: asking for more images
adds some and leaves the others, byte for byte, as they were.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .folder import fill
from .layouts import write_ade, write_coco
from .scenes import SCENE_CLASSES
from .settings import SPLITS, Settings, checked_settings
from .shapes import SHAPE_CLASSES

__all__ = ['PreparedData', 'generate_ade', 'generate_coco']


@dataclass(frozen=True)
class PreparedData:
    """What a generator call left on disk.

    Attributes:
        root: The dataset's folder.
        layout: 'coco' or 'ade'.
        reused: Whether the folder already held exactly this dataset and was left as it is.
        images: Images per split ('train', 'val').
        annotations: Annotations per split, crowd regions included; empty for 'ade'.
        classes: Class names.
    """

    root: Path
    layout: str
    reused: bool
    images: dict[str, int]
    annotations: dict[str, int]
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
    """Write the detection dataset in COCO's layout: coloured shapes on cluttered backgrounds.

    `root` gets `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json`. A
    folder that already holds exactly this dataset is left as it is; one whose generation was
    interrupted is generated again.

    Args:
        root: Folder to write; made if missing.
        num_train: Training images.
        num_val: Validation images.
        image_size: (height, width) in px around which the images' sizes vary.
        seed: Same seed, same bytes in every file.
        overwrite: Replace a dataset of other settings, or write into a folder that holds
            other files. Files that the generator did not make are never deleted or replaced.
        progress: Show a progress bar on stderr.

    Raises:
        UserError: If a number is out of range, or the folder can't or must not be written.
    """
    settings = checked_settings('coco', num_train, num_val, image_size, seed)
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
    """Write the segmentation dataset in the layout of ADEChallengeData2016: plain scenes.

    `root` gets `images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`;
    the label maps hold 0 (no class) and the ids of `SCENE_CLASSES`, as `reduce_zero_label=True`
    expects them. Arguments, reuse and errors are those of `generate_coco`.
    """
    settings = checked_settings('ade', num_train, num_val, image_size, seed)
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
    images = {split: settings.count(split) for split in SPLITS}

    def write() -> dict[str, int]:
        with tqdm(total=sum(images.values()), unit='img', disable=not progress,
                  desc=f'{settings.layout} shapes') as bar:
            return write_layout(root, settings, bar.update)

    annotations, reused = fill(root, settings, classes, write, overwrite=overwrite)
    return PreparedData(root, settings.layout, reused, images, annotations, classes)
