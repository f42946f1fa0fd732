"""Batches of two small images with boxes, masks and labels of pixels."""

from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

HEIGHT, WIDTH = 128, 160


def detection_batch(num_classes: int, height: int = HEIGHT, width: int = WIDTH, *,
                    num_pixel_classes: int | None = None, with_masks: bool = True,
                    with_proposals: bool = False, num_images: int = 2) -> dict[str, Any]:
    """Return images with two objects each, as MMDetection's pipelines pack them.

    Args:
        num_classes: The objects have the first and the last of these classes.
        height: Of the images.
        width: Of the images.
        num_pixel_classes: Number of classes of pixels, for models that also learn these.
        with_masks: Whether the objects have masks.
        with_proposals: Whether to add boxes near the objects and elsewhere, as Fast R-CNN reads
            them from a file.
        num_images: How many.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor([[.06, .08, .47, .73], [.31, .21, .94, .94]]) * torch.tensor(
        [width, height, width, height])
    masks = np.zeros((2, height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    samples = []
    for i in range(num_images):
        sample = DetDataSample(metainfo=dict(
            img_id=i, img_path='', img_shape=(height, width), ori_shape=(height, width),
            pad_shape=(height, width), batch_input_shape=(height, width), scale_factor=(1.0, 1.0),
            flip=False, flip_direction=None, border=(0, height, 0, width),
            homography_matrix=np.eye(3, dtype=np.float32)))
        sample.gt_instances = InstanceData(
            bboxes=HorizontalBoxes(boxes.clone()), labels=torch.tensor([0, num_classes - 1]))
        sample.ignored_instances = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=torch.zeros(0, dtype=torch.long))
        if with_masks:
            sample.gt_instances.masks = BitmapMasks(masks, height, width)
            sample.ignored_instances.masks = BitmapMasks(masks[:0], height, width)
        if with_proposals:
            corners = torch.rand(32, 2, 2).sort(1).values.flatten(1)
            sample.proposals = InstanceData(bboxes=torch.cat(
                [boxes + 2, corners * torch.tensor([width, height, width, height])]))
        if num_pixel_classes:
            sample.gt_sem_seg = PixelData(
                sem_seg=_label_map(num_pixel_classes, height, width))
        samples.append(sample)
    return dict(inputs=_images(num_images, height, width), data_samples=samples)


def segmentation_batch(num_classes: int, height: int = HEIGHT, width: int = WIDTH, *,
                       num_images: int = 2) -> dict[str, Any]:
    """Return images with the first and the last class and ignored pixels, as MMSegmentation packs
    them.
    """
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(num_images):
        shape = (height, width)
        sample = SegDataSample(metainfo=dict(
            img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0),
            flip=False, flip_direction=None, img_path=''))
        sample.gt_sem_seg = PixelData(data=_label_map(num_classes, height, width))
        samples.append(sample)
    return dict(inputs=_images(num_images, height, width), data_samples=samples)


def _label_map(num_classes: int, height: int, width: int) -> torch.Tensor:
    labels = torch.full((1, height, width), 255)
    labels[:, :height // 2], labels[:, -height // 4:] = 0, num_classes - 1
    return labels


def _images(count: int, height: int, width: int) -> list[torch.Tensor]:
    return [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(count)]
