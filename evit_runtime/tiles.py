"""Large images in overlapping tiles, so that small objects keep their pixels."""

from typing import Any

import numpy as np

from .errors import UserError
from .model import Image, Model
from .results import Result

__all__ = ['TiledModel']

# An object that one tile shows in part is inside the box of the tile that shows all of it.
_SHARE_INSIDE = 0.7
_AT_BORDER = 2  # pixels


class TiledModel(Model):
    """Model that takes an image in overlapping tiles, and joins what it finds in them.

    Objects that are found twice are left out by supervision. An object larger than a tile is found
    in parts. Of label maps, each pixel has the class of the tile whose border is farthest away.
    """

    def __init__(self, model: Model, *, size: int = 640, overlap: float = 0.2,
                 batch_size: int = 1) -> None:
        """Wrap a model.

        Args:
            model: The model.
            size: Side of a tile in pixels.
            overlap: Part of a tile that its neighbour has, too.
            batch_size: Tiles that the model computes at a time.

        Raises:
            UserError: If a number is out of its range.
        """
        if size < 32:
            raise UserError(f'tiles have at least 32 pixels, but got {size}')
        if not 0 <= overlap <= 0.5:
            raise UserError(f'tiles overlap by 0 to 0.5 of their size, but got {overlap:g}')
        self.model = model
        self.size = size
        self.overlap = round(size * overlap)
        self.batch_size = batch_size
        self.task, self.class_names, self.palette = model.task, model.class_names, model.palette
        self.max_pixels = model.max_pixels

    def _predict(self, images: list[Image], score_threshold: float) -> list[Result]:
        predict = self._label_map if self.task == 'semantic segmentation' else self._objects
        return [predict(image, score_threshold) for image in images]

    def _objects(self, image: Image, score_threshold: float) -> Result:
        """Return the objects of all tiles.

        Raises:
            UserError: If supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError('tiles are cut by supervision, which is not installed: '
                            'pip install supervision') from error

        def callback(tiles: list[Image]) -> list[Any]:
            results = self.model([np.ascontiguousarray(tile) for tile in tiles],
                                 score_threshold=score_threshold, batch_size=len(tiles))
            return [_for_merging(result) for result in results]

        # Masks are kept in runs: those of a large image would fill the memory.
        slicer = supervision.InferenceSlicer(
            callback if self.batch_size > 1 else lambda tile: callback([tile])[0],
            slice_wh=self.size, overlap_wh=self.overlap, iou_threshold=_SHARE_INSIDE,
            overlap_metric=supervision.OverlapMetric.IOS, batch_size=self.batch_size,
            compact_masks=True)
        found = slicer(image)
        masks = None
        if self.task == 'instance segmentation':
            masks = np.zeros((0, *image.shape[:2]), bool) if found.mask is None \
                else np.asarray(found.mask)
        return Result(shape=image.shape[:2], class_names=self.class_names, palette=self.palette,
                      boxes=found.xyxy, scores=found.data.get('score', ()), labels=found.class_id,
                      masks=masks)

    def _label_map(self, image: Image, score_threshold: float) -> Result:
        height, width = image.shape[:2]
        places = [(top, left) for top in self._starts(height) for left in self._starts(width)]
        tiles = (np.ascontiguousarray(image[top:top + self.size, left:left + self.size])
                 for top, left in places)
        labels = farthest = None
        results = self.model.stream(tiles, score_threshold=score_threshold,
                                    batch_size=self.batch_size)
        for (top, left), result in zip(places, results, strict=True):
            assert result.label_map is not None
            if labels is None or farthest is None:
                labels = np.full((height, width), result.no_class, result.label_map.dtype)
                farthest = np.full((height, width), -1, np.int32)
            distances = _to_border(result.shape, top, left, height, width)
            place = np.s_[top:top + result.shape[0], left:left + result.shape[1]]
            better = distances > farthest[place]
            farthest[place][better] = distances[better]
            labels[place][better] = result.label_map[better]
        return Result(shape=(height, width), class_names=self.class_names, palette=self.palette,
                      label_map=labels)

    def _starts(self, length: int) -> list[int]:
        """Return where tiles begin along a side of an image; the last one ends with it."""
        last = max(length - self.size, 0)
        return [*range(0, last, self.size - self.overlap), last]


def _for_merging(result: Result) -> Any:
    """Return the objects of a tile as supervision's, those that its border may cut with low scores.

    So a whole object is kept rather than a part of it, whatever the model is surer of. ``data`` has
    the scores.
    """
    detections = result.to_supervision()
    height, width = result.shape
    cut = (detections.xyxy < _AT_BORDER).any(1) | (
        detections.xyxy[:, 2:] > np.array([width, height]) - _AT_BORDER).any(1)
    detections.data = {'score': detections.confidence}
    detections.confidence = np.where(cut, detections.confidence / 1000, detections.confidence)
    return detections


def _to_border(shape: tuple[int, int], top: int, left: int, height: int, width: int
               ) -> np.ndarray[Any, Any]:
    """Return how far each pixel of a tile is from those borders that the image goes on behind."""
    def along(size: int, start: int, length: int) -> np.ndarray[Any, Any]:
        distances = np.full(size, height + width, np.int32)
        if start > 0:
            distances = np.minimum(distances, np.arange(size, dtype=np.int32))
        if start + size < length:
            distances = np.minimum(distances, np.arange(size, dtype=np.int32)[::-1])
        return distances

    return np.minimum(along(shape[0], top, height)[:, None], along(shape[1], left, width))
