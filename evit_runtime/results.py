"""What a model finds in one image."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .class_names import Colour, class_colours, class_numbers
from .errors import UserError

if TYPE_CHECKING:
    import supervision

__all__ = ['Result']


@dataclass(kw_only=True, eq=False)
class Result:
    """What a model finds in one image: objects, or the class of each pixel.

    Attributes:
        shape: Height and width of the image.
        class_names: Names of all classes that the model knows.
        palette: A colour (red, green, blue) for each of them.
        boxes: Corners (N, 4) float32 of the objects in pixels of the image: left, top, right,
            bottom. None for segmentors.
        scores: Their scores (N,) float32, from high to low. None for segmentors.
        labels: Their classes (N,) int64, as indices of ``class_names``. None for segmentors.
        masks: Their masks (N, H, W) bool, of instance segmentation; else None.
        label_map: The class of each pixel (H, W): uint8 with 255 for no class, or, of models with
            more than 255 classes, uint16 with 65535. None for detectors.
        track_ids: The number of each object's track (N,) int64 in a video, -1 if it has none yet;
            None without tracking.
        source: Path or name of the image, if it has one.
        image: The image (H, W, 3) uint8 in OpenCV's order of colours, BGR. A photo is turned as
            its EXIF orientation says.
    """

    shape: tuple[int, int]
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...] = ()
    boxes: npt.NDArray[np.float32] | None = None
    scores: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.int64] | None = None
    masks: npt.NDArray[np.bool_] | None = None
    label_map: npt.NDArray[Any] | None = None
    track_ids: npt.NDArray[np.int64] | None = None
    source: str | None = None
    image: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if (self.boxes is None) == (self.label_map is None):
            raise ValueError('a result has either boxes or a label map')
        self.class_names = tuple(self.class_names)
        self.palette = tuple(class_colours(len(self.class_names), self.palette or None))
        if self.label_map is not None:
            kind = np.uint8 if len(self.class_names) <= 255 else np.uint16
            self.label_map = np.asarray(self.label_map).astype(kind, copy=False)
            return
        self.boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        self.scores = np.ones(len(self.boxes), np.float32) if self.scores is None else \
            np.asarray(self.scores, np.float32).reshape(-1)
        self.labels = np.zeros(len(self.boxes), np.int64) if self.labels is None else \
            np.asarray(self.labels, np.int64).reshape(-1)
        if self.masks is not None:
            self.masks = np.asarray(self.masks, np.bool_).reshape(-1, *self.shape)
        order = np.argsort(-self.scores, kind='stable')
        if (order[1:] < order[:-1]).any():
            self._select(order)

    def __len__(self) -> int:
        """Return the number of objects, or of classes that occur in the label map."""
        return len(self.names) if self.boxes is None else len(self.boxes)

    def __repr__(self) -> str:
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        found = ', '.join(name if self.boxes is None or count == 1 else f'{count} {name}'
                          for name, count in counts.items())
        height, width = self.shape
        return f'<Result of {self.source or "an image"}, {width}x{height}: {found or "nothing"}>'

    @property
    def names(self) -> list[str]:
        """The class name of each object, or of each class that occurs in the label map."""
        if self.labels is not None:
            return [self.class_names[label] for label in self.labels]
        return [self.class_names[label] for label in self._classes_that_occur()]

    @property
    def no_class(self) -> int:
        """The value of pixels without a class in the label map."""
        return 255 if len(self.class_names) <= 255 else 65535

    def filter(self, *, score_threshold: float | None = None,
               classes: Iterable[str | int] | None = None) -> 'Result':
        """Return a result with fewer objects; this one stays as it is.

        Args:
            score_threshold: Lowest score of the objects to keep.
            classes: Names or numbers of the classes to keep; in a label map, the pixels of other
                classes get no class.

        Raises:
            UserError: If the model does not have one of the classes.
        """
        result = replace(self)
        numbers = None if classes is None else sorted(class_numbers(classes, self.class_names))
        if result.boxes is None:
            if numbers is not None:
                assert result.label_map is not None
                result.label_map = np.where(np.isin(result.label_map, numbers), result.label_map,
                                            self.no_class).astype(result.label_map.dtype)
            return result
        assert result.scores is not None and result.labels is not None
        keep = np.ones(len(result.boxes), bool)
        if score_threshold is not None:
            # In float32, as scores are: 0.3 would be larger than a score that was rounded to it.
            keep &= result.scores >= np.float32(score_threshold)
        if numbers is not None:
            keep &= np.isin(result.labels, numbers)
        result._select(keep)
        return result

    def plot(self, *, enlarge: bool = False) -> npt.NDArray[np.uint8]:
        """Return the image (H, W, 3) uint8, BGR, with the objects or classes drawn on it.

        Args:
            enlarge: Enlarge an image of less than 512 pixels, so that its labels can be read.

        Raises:
            UserError: If the result has no image, or supervision is not installed.
        """
        from .drawing import draw_result

        return draw_result(self, enlarge=enlarge)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture that `plot` draws, enlarged if it is small.

        Args:
            path: A file whose ending names the format, such as ``.jpg`` or ``.png``. Its folder is
                created.

        Raises:
            UserError: If it can't be drawn or written.
        """
        from .drawing import write_picture

        write_picture(Path(path), self.plot(enlarge=True))

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Return the objects, or the classes of the label map, in COCO's format of results.

        Args:
            image_id: The number of the image in the annotation file.

        Returns:
            list: For each object a dict with ``image_id``, ``category_id`` (the index of its class,
            from 0), ``bbox`` (left, top, width, height), ``area`` and ``score``; with a mask, also
            ``segmentation`` in COCO's run-length encoding. For a label map, one dict with the
            pixels of each class that occurs.
        """
        if self.boxes is None:
            assert self.label_map is not None
            return [_coco_segment(self.label_map == label, image_id, label)
                    for label in self._classes_that_occur()]
        assert self.scores is not None and self.labels is not None
        entries = []
        for k, (left, top, right, bottom) in enumerate(self.boxes.astype(float).tolist()):
            entry = {'image_id': image_id, 'category_id': int(self.labels[k]),
                     'bbox': [left, top, right - left, bottom - top],
                     'area': (right - left) * (bottom - top), 'score': float(self.scores[k])}
            if self.masks is not None:
                segment = _coco_segment(self.masks[k], image_id, int(self.labels[k]))
                entry |= {'area': segment['area'], 'segmentation': segment['segmentation']}
            if self.track_ids is not None:
                entry['track_id'] = int(self.track_ids[k])
            entries.append(entry)
        return entries

    def to_supervision(self) -> 'supervision.Detections':
        """Return the objects as `supervision.Detections`; of a label map, one for each class.

        Raises:
            UserError: If supervision is not installed.
        """
        try:
            from supervision import Detections, mask_to_xyxy
        except ImportError as error:
            raise UserError('to_supervision() needs supervision, which is not installed: '
                            'pip install supervision') from error
        names = {'class_name': np.array(self.names, dtype=str)}
        if self.boxes is None:
            labels = np.array(self._classes_that_occur(), int)
            masks = self.label_map == labels[:, None, None]
            return Detections(xyxy=mask_to_xyxy(masks).astype(np.float32).reshape(-1, 4),
                              mask=masks, class_id=labels, data=names)
        return Detections(xyxy=self.boxes.copy(), mask=self.masks, confidence=self.scores,
                          class_id=self.labels, tracker_id=self.track_ids, data=names)

    def _classes_that_occur(self) -> list[int]:
        assert self.label_map is not None
        return [int(label) for label in np.unique(self.label_map)
                if label < len(self.class_names)]

    def _select(self, index: npt.NDArray[Any]) -> None:
        """Keep some objects, or put them in another order."""
        for name in ('boxes', 'scores', 'labels', 'masks', 'track_ids'):
            values = getattr(self, name)
            if values is not None:
                setattr(self, name, values[index])


def _coco_segment(mask: npt.NDArray[np.bool_], image_id: int, label: int) -> dict[str, Any]:
    """Return the pixels of a mask (H, W) in COCO's format."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = [0.0] * 4 if not len(rows) else [
        float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1),
        float(rows[-1] - rows[0] + 1)]
    return {'image_id': image_id, 'category_id': label, 'bbox': box, 'area': float(mask.sum()),
            'segmentation': {'size': list(mask.shape), 'counts': _run_lengths(mask)}}


def _run_lengths(mask: npt.NDArray[np.bool_]) -> str:
    """Return a mask in COCO's compressed run-length encoding."""
    try:
        from supervision import mask_to_rle
    except ImportError as error:
        raise UserError('masks are encoded by supervision, which is not installed: '
                        'pip install supervision') from error
    return str(mask_to_rle(mask, compressed=True))
