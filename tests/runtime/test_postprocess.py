"""Masks are pasted as MMDetection does it."""

import numpy as np
import torch

from evit_runtime.postprocess import boxes_in_image, label_map_in_image, paste_masks
from evit_runtime.preprocess import Preprocessing


def test_masks_are_pasted_as_by_mmdetection():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    rng = np.random.default_rng(0)
    height, width = 75, 113
    corners = rng.uniform(-5, 100, (40, 2, 2)).astype(np.float32)
    boxes = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)
    coarse = rng.uniform(0, 1, (40, 5, 5)).astype(np.float32)
    masks = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], (28, 28),
                                            mode='bilinear')[0].numpy()
    whole, _ = _do_paste_mask(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), height,
                              width, skip_empty=False)
    expected = (whole >= 0.5).numpy()
    pasted = paste_masks(masks, boxes, (height, width), 0.5)
    assert pasted.shape == expected.shape and expected.any(axis=(1, 2)).sum() > 30
    assert (pasted != expected).mean() < 1e-5


def test_a_box_without_extent_or_outside_has_no_mask():
    boxes = np.array([[5, 5, 5, 9], [40, 40, 60, 60], [-9, -9, -2, -2]], np.float32)
    assert not paste_masks(np.ones((3, 28, 28), np.float32), boxes, (20, 20), 0.5).any()


def test_boxes_are_in_pixels_of_the_image():
    prepared = Preprocessing(scale=(100, 50), keep_ratio=False)(np.zeros((200, 300, 3), np.uint8))
    boxes = boxes_in_image(np.array([[10, 10, 100, 50]], np.float32), prepared)
    np.testing.assert_allclose(boxes, [[30, 40, 300, 200]], rtol=1e-6)


def test_a_label_map_loses_its_padding():
    prepared = Preprocessing(scale=(8, 8), size=(8, 8))(np.zeros((8, 16, 3), np.uint8))
    label_map = np.zeros((8, 8), np.int64)
    label_map[4:] = 9
    label_map[:4, 4:] = 1
    found = label_map_in_image(label_map, prepared)
    assert found.shape == (8, 16)
    assert (found[:, :8] == 0).all() and (found[:, 8:] == 1).all()
