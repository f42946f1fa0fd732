"""Pictures of the samples of MMDetection and MMSegmentation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evit_runtime.class_names import Colour, class_colours
from evit_runtime.drawing import Image, Objects, draw_label_map, draw_objects, enlarged

from ..report.pictures import side_by_side

__all__ = ['draw_comparison', 'draw_truth']


def draw_comparison(image: Image, sample: Any, metainfo: Mapping[str, Any], *,
                    score_thr: float) -> Image:
    """Return the ground truth and the predictions of an image, next to each other.

    Args:
        image: The image (H, W, 3) uint8, BGR.
        sample: A DetDataSample or SegDataSample; without ground truth, the predictions are alone.
        metainfo: That of the dataset, with its ``classes`` and, maybe, a ``palette``.
        score_thr: Lowest score of the predictions to draw.
    """
    classes, colours = _classes(metainfo)
    panels, seen = {}, set()
    for heading, prefix in (('ground truth', 'gt'), ('predictions', 'pred')):
        drawn = _draw(image, sample, prefix, classes, colours, score_thr)
        if drawn is not None:
            panels[heading] = drawn[0]
            seen |= drawn[1]
    if 'predictions' in panels and 'pred_instances' in sample:
        panels = {heading if heading == 'ground truth' else f'{heading}, score ≥ {score_thr:g}':
                  panel for heading, panel in panels.items()}
    return side_by_side(panels or {'image': enlarged(image)[0]},
                        {classes[k]: colours[k] for k in sorted(seen)})


def draw_truth(image: Image, sample: Any, metainfo: Mapping[str, Any]
               ) -> tuple[Image, dict[str, Colour], int]:
    """Draw the ground truth of an image.

    Returns:
        The picture, the colours of the classes in it by name, and the number of objects or, for
        label maps, of classes.
    """
    classes, colours = _classes(metainfo)
    drawn = _draw(image, sample, 'gt', classes, colours, 0.0)
    if drawn is None:
        return image, {}, 0
    picture, seen = drawn
    count = len(sample.gt_instances) if 'gt_instances' in sample else len(seen)
    return picture, {classes[k]: colours[k] for k in sorted(seen)}, count


def _classes(metainfo: Mapping[str, Any]) -> tuple[Sequence[str], list[Colour]]:
    classes = list(metainfo.get('classes') or ())
    return classes, class_colours(len(classes), metainfo.get('palette'))


def _draw(image: Image, sample: Any, prefix: str, classes: Sequence[str],
          colours: Sequence[Colour], score_thr: float) -> tuple[Image, set[int]] | None:
    """Draw what a sample has under a prefix; return it with the classes that occur."""
    if f'{prefix}_instances' in sample:
        objects = _objects(getattr(sample, f'{prefix}_instances'), score_thr, len(classes))
        return draw_objects(image, objects, classes, colours), set(objects.labels.tolist())
    if f'{prefix}_sem_seg' in sample:
        data = getattr(sample, f'{prefix}_sem_seg').data
        labels = np.asarray(data.cpu()).reshape(data.shape[-2:])
        seen = {int(k) for k in np.unique(labels) if 0 <= k < len(classes)}
        return draw_label_map(image, labels, colours), seen
    return None


def _objects(instances: Any, score_thr: float, num_classes: int) -> Objects:
    """Return instances of MMDetection as arrays, those of low scores left out."""
    labels = np.asarray(instances.labels.cpu())
    keep = labels < num_classes
    scores = masks = None
    if 'scores' in instances:
        scores = np.asarray(instances.scores.detach().float().cpu())
        keep &= scores >= score_thr
        scores = scores[keep]
    if 'masks' in instances:
        masks = instances.masks
        masks = np.asarray(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks.cpu(),
                           bool)[keep]
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)  # mmdet's boxes have a tensor
    return Objects(np.asarray(boxes.detach().float().cpu())[keep], labels[keep], scores, masks)
