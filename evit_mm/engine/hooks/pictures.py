"""Pictures of predictions next to the ground truth."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from evit_runtime.drawing import write_picture

from ...data.image_paths import path_below
from ..drawing import draw_comparison
from .report import progress_name

__all__ = ['PictureHook']

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@HOOKS.register_module()
class PictureHook(Hook):
    """Hook that draws predictions next to the ground truth, in tests and in validations.

    A picture has the path below its folder that its image has below `image_root`, so that images of
    one name in several folders stay apart.

    Args:
        folder: Folder of the pictures of a test; None draws none.
        image_root: Folder of the images; None puts all pictures into one folder.
        score_thr: Lowest score of the detections to draw.
        val_images: Number of images to draw in each validation, in ``pictures/epoch_N`` of the
            work dir.
        backend_args: Storage of the images, as in mmengine.
    """

    def __init__(self, folder: str | None = None, image_root: str | None = None,
                 score_thr: float = 0.3, val_images: int = 0,
                 backend_args: dict[str, Any] | None = None) -> None:
        self._folder = folder
        self._image_root = image_root
        self._score_thr = score_thr
        self._val_images = val_images
        self._backend_args = backend_args
        self._drawn = 0

    def before_val_epoch(self, runner: Any) -> None:
        """Start a new set of pictures."""
        self._drawn = 0

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence[Any] | None = None) -> None:
        """Draw the first images of a validation."""
        folder = Path(runner.work_dir, 'pictures', progress_name(runner))
        for sample in (outputs or ())[:max(0, self._val_images - self._drawn)]:
            self._draw(runner, sample, runner.val_loop.dataloader.dataset, folder)
            self._drawn += 1

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence[Any] | None = None) -> None:
        """Draw the images of a batch."""
        if self._folder is not None:
            for sample in outputs or ():
                self._draw(runner, sample, runner.test_loop.dataloader.dataset,
                           Path(self._folder))

    def _draw(self, runner: Any, sample: Any, dataset: Any, folder: Path) -> None:
        """Draw one image.

        Raises:
            UserError: If the picture can't be written.
        """
        image = _read(sample, self._backend_args)
        path = folder / path_below(sample.img_path, self._image_root)
        if 'pred_panoptic_seg' in sample:  # of MMDetection alone, with a drawing of its own
            path.parent.mkdir(parents=True, exist_ok=True)
            runner.visualizer.add_datasample(
                path.name, mmcv.bgr2rgb(image), sample, out_file=str(path),
                pred_score_thr=self._score_thr)
            return
        if 'pred_sem_seg' in sample:  # JPEG would blur the edges of the classes
            path = Path(os.path.splitext(path)[0] + '.png')
        elif path.suffix.lower() not in _SUFFIXES:
            path = path.with_name(f'{path.name}.jpg')
        write_picture(path, draw_comparison(image, sample, dataset.metainfo,
                                            score_thr=self._score_thr))


def _read(sample: Any, backend_args: dict[str, Any] | None) -> Any:
    """Return the image of a sample as the model saw it, (H, W, 3) uint8 in BGR."""
    content = fileio.get(sample.img_path, backend_args=backend_args)
    image = mmcv.imfrombytes(content)
    if image.shape[:2] != tuple(sample.ori_shape[:2]):  # annotated on the pixels as stored
        image = mmcv.imfrombytes(content, flag='color_ignore_orientation')
    return image
