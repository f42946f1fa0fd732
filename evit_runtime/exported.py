"""Models that `evit-mm export` has written."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .metadata import Metadata
from .model import Image, Model
from .postprocess import boxes_in_image, label_map_in_image, paste_masks
from .preprocess import Prepared, stack
from .results import Result
from .sessions import Session, open_session

__all__ = ['ExportedModel', 'load_model']


class ExportedModel(Model):
    """A detector or segmentor in a file, which runs without PyTorch.

    Images of a batch are computed together if they have the same size, so that none is padded for
    another.

    Attributes:
        session: What computes; ``session.run`` takes and returns arrays by name.
        metadata: What the file says about itself.
    """

    def __init__(self, session: Session, metadata: Metadata) -> None:
        self.session = session
        self.metadata = metadata
        self.task = metadata.task
        self.class_names = metadata.class_names
        self.palette = metadata.palette

    def prepare(self, images: list[Prepared]) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of the file for images of one size that were prepared."""
        known: dict[str, npt.NDArray[Any]] = {
            'images': stack(images, self.metadata.preprocessing.fill),
            'sizes': np.array([image.size for image in images], np.int64),
            'output_size': np.array(images[0].shape, np.int64),
        }
        inputs = {name: known[name] for name in self.metadata.inputs}
        batch = self.metadata.batch
        if batch is not None and len(images) < batch:
            for name in inputs.keys() & {'images', 'sizes'}:
                inputs[name] = np.concatenate(
                    (inputs[name], np.repeat(inputs[name][-1:], batch - len(images), axis=0)))
        return inputs

    def _predict(self, images: list[Image], score_threshold: float) -> list[Result]:
        return self.predict_prepared([self.metadata.preprocessing(image) for image in images],
                                     score_threshold)

    def predict_prepared(self, images: list[Prepared], score_threshold: float) -> list[Result]:
        """Return a result for each of some images that were resized and padded already."""
        # Only a file for any size has groups; in one of a fixed size all images are alike.
        is_fixed = self.metadata.preprocessing.size is not None
        groups: dict[Any, list[int]] = {}
        for index, image in enumerate(images):
            key = None if is_fixed else (
                image.pixels.shape, image.shape if 'output_size' in self.metadata.inputs else None)
            groups.setdefault(key, []).append(index)
        results: dict[int, Result] = {}
        for group in groups.values():
            size = self.metadata.batch or len(group)
            for start in range(0, len(group), size):
                indices = group[start:start + size]
                outputs = self.session.run(self.prepare([images[index] for index in indices]))
                for place, index in enumerate(indices):
                    results[index] = self._result(
                        {name: values[place] for name, values in outputs.items()},
                        images[index], score_threshold)
        return [results[index] for index in range(len(images))]

    def _result(self, outputs: dict[str, npt.NDArray[Any]], image: Prepared,
                score_threshold: float) -> Result:
        """Return the result of one image from the outputs for it."""
        known: dict[str, Any] = dict(shape=image.shape, class_names=self.class_names,
                                     palette=self.palette)
        if 'label_map' in outputs:
            label_map = outputs['label_map']
            if 'output_size' not in self.metadata.inputs:
                label_map = label_map_in_image(label_map, image)
            return Result(label_map=label_map, **known)
        found = (outputs['labels'] >= 0) & (outputs['scores'] >= score_threshold)
        boxes = boxes_in_image(outputs['boxes'][found], image)
        masks = None
        if 'masks' in outputs:
            masks = paste_masks(outputs['masks'][found], boxes, image.shape,
                                self.metadata.mask_threshold)
        return Result(boxes=boxes, scores=outputs['scores'][found],
                      labels=outputs['labels'][found], masks=masks, **known)


def load_model(path: str | os.PathLike[str], backend: str | None = None, *,
               threads: int | None = None, precision: str | None = None,
               device: str = 'cpu') -> ExportedModel:
    """Open a file of `evit-mm export`.

        model = load_model('model.onnx')
        results = model(['street.jpg', 'park.jpg'], score_threshold=0.3)

    Args:
        path: A file whose name ends in .onnx, or in .xml with its .bin file next to it.
        backend: ``'onnxruntime'`` or ``'openvino'``, which reads both kinds; by default the one
            that fits the name and is installed.
        threads: CPU threads; by default the backend's choice.
        precision: In which OpenVINO computes, ``'fp32'`` or ``'bf16'``; by default the one that the
            file was exported for.
        device: ``'cpu'``, or ``'cuda'`` with onnxruntime-gpu.

    Raises:
        UserError: If it can't be read, or is no such file.
    """
    path = Path(path)
    session, text = open_session(path, backend, threads, precision, str(device))
    return ExportedModel(session, checked_metadata(path, session, text))


def checked_metadata(path: Path, session: Session, text: str | None) -> Metadata:
    """Read the metadata of a file, and check that it fits the file's inputs and outputs.

    Raises:
        UserError: If it has none, or they don't fit.
    """
    if text is None:
        raise UserError(f'{path} was not written by evit-mm export, as it has no metadata of it: '
                        'export the model again from its config and checkpoint')
    try:
        metadata = Metadata.from_json(text)
    except ValueError as error:
        raise UserError(f'{path} can\'t be used: {error}') from error
    for kind, expected, found in (('inputs', metadata.inputs, session.inputs),
                                  ('outputs', metadata.outputs, session.outputs)):
        if set(expected) != set(found):
            raise UserError(f'{path} has the {kind} {", ".join(found)}, but its metadata says '
                            f'{", ".join(expected)}: it was changed after evit-mm export')
    if metadata.task == 'features':
        raise UserError(f'{path} is a backbone alone, which predicts nothing: run it with '
                        'onnxruntime or OpenVINO, or export a detector or segmentor')
    return metadata
