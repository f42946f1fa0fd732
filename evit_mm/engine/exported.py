"""Exported files in the place of a model, so that the data and metrics of a config test them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData

from evit_runtime.exported import ExportedModel
from evit_runtime.image_files import read_image
from evit_runtime.preprocess import Prepared
from evit_runtime.results import Result

from ..errors import ConfigError

__all__ = ['EXPORTED', 'ExportedPredictor', 'check_exported_classes', 'is_exported',
           'load_exported']

EXPORTED = ('.onnx', '.xml', '.pt2')
"""The endings of exported models."""


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether a name is that of an exported file; it may not exist."""
    return Path(path).suffix.lower() in EXPORTED


def load_exported(path: str | os.PathLike[str]) -> ExportedModel:
    """Open an exported file.

    Raises:
        UserError: If it can't be read.
    """
    from ..predict import load_model

    model = load_model(path)
    assert isinstance(model, ExportedModel)
    return model


def check_exported_classes(model: ExportedModel, dataset: Any) -> None:
    """Check that an exported model has the classes of a dataset.

    Raises:
        ConfigError: If they differ.
    """
    classes = tuple((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())
    if classes and classes != tuple(model.class_names):
        different = [f'{one} and {other}' for one, other in zip(model.class_names, classes,
                                                                strict=False) if one != other]
        raise ConfigError(f'the exported model has {len(model.class_names)} classes and the test '
                          f'dataset {len(classes)}'
                          + (f'; the first that differ are {different[0]}' if different else ''))


@MODELS.register_module()
class ExportedPredictor(BaseModel):
    """An exported file as a model of mmengine, for tests.

    A file for any size takes the images as the config's pipeline has resized them. One of a fixed
    size resizes the image files by its own rule.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.model = load_exported(path)

    def forward(self, inputs: Sequence[torch.Tensor], data_samples: Sequence[Any] | None = None,
                mode: str = 'predict') -> list[Any]:
        """Predict.

        Args:
            inputs: Pixels (3, H, W) in the order BGR, as the pipeline gives them.
            data_samples: Where predictions are put; their ``metainfo`` says how the images were
                resized.
            mode: As in mmengine; only ``'predict'`` works.
        """
        assert mode == 'predict' and data_samples is not None
        # MMDetection pads a batch to its largest image, which has an influence on what is found
        # near the border; MMSegmentation has batches of one size.
        largest = [max(image.shape[axis] for image in inputs) for axis in (1, 2)]
        prepared = [self._prepared(image, sample.metainfo, largest)
                    for image, sample in zip(inputs, data_samples, strict=True)]
        results = self.model.predict_prepared(prepared, 0.0)
        for sample, result in zip(data_samples, results, strict=True):
            _put(result, sample)
        return list(data_samples)

    def _prepared(self, image: torch.Tensor, metainfo: dict[str, Any],
                  largest: Sequence[int]) -> Prepared:
        rule = self.model.metadata.preprocessing
        if rule.size is not None:
            return rule(read_image(metainfo['img_path']))
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        size = pixels.shape[:2]
        padded_to = largest if 'sizes' in self.model.metadata.inputs else size
        rows, columns = (-(-length // rule.divisor) * rule.divisor for length in padded_to)
        padded = np.empty((rows, columns, 3), np.uint8)
        padded[:] = rule.fill
        padded[:size[0], :size[1]] = pixels
        scale = metainfo.get('scale_factor', (1.0, 1.0))
        return Prepared(padded, tuple(metainfo['img_shape'][:2]), size, tuple(scale[:2]),
                        tuple(metainfo['ori_shape'][:2]))


def _put(result: Result, sample: Any) -> None:
    """Put a result into a DetDataSample or SegDataSample."""
    if result.label_map is not None:
        labels = torch.from_numpy(result.label_map.astype(np.int64))
        sample.set_data({'pred_sem_seg': PixelData(data=labels[None])})
        return
    instances = InstanceData(bboxes=torch.from_numpy(result.boxes),
                             scores=torch.from_numpy(result.scores),
                             labels=torch.from_numpy(result.labels))
    if result.masks is not None:
        instances.masks = torch.from_numpy(result.masks)
    sample.pred_instances = instances
