"""Suppression of overlapping boxes."""

import importlib

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')

# The areas are 100, 80 and 100. A and B overlap in 80, so their IoU is 80 / (100 + 80 - 80) =
# 0.8. A and C overlap in 5 * 10 = 50, which makes 50 / (100 + 100 - 50) = 1/3. B and C overlap
# in 5 * 8 = 40, which makes 40 / (80 + 100 - 40) = 2/7 = 0.2857.
ABC = [[0., 0., 10., 10.], [0., 0., 10., 8.], [5., 0., 15., 10.]]


@pytest.mark.parametrize(('scores', 'threshold', 'kept'), [
    ([.9, .8, .7], .85, [0, 1, 2]),
    ([.9, .8, .7], .75, [0, 2]),
    ([.9, .8, .7], .30, [0]),
    ([.7, .8, .9], .30, [2, 1]),  # C drops A (1/3), but not B (0.2857)
    ([.8, .9, .7], .30, [1, 2]),  # B drops A (0.8); A no longer drops C
])
def test_nms_by_hand(device, scores, threshold, kept):
    boxes = torch.tensor(ABC, device=device)
    detections, indices = mmcv_functions.nms(boxes, torch.tensor(scores, device=device), threshold)
    assert indices.dtype == torch.int64
    assert indices.tolist() == kept
    expected = torch.tensor([[*ABC[k], scores[k]] for k in kept], device=device)
    assert torch.equal(detections, expected)


@pytest.mark.parametrize(('offset', 'kept'), [(0, [0, 1]), (1, [0])])
def test_nms_offset_counts_the_last_pixel(device, offset, kept):
    # Widths and heights of 9 * 9 and 9 * 4: the IoU is 36 / 81 = 0.444. With the offset they
    # are 10 * 10 and 10 * 5, which makes 50 / 100 = 0.5.
    boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 4.]], device=device)
    scores = torch.tensor([.9, .8], device=device)
    assert mmcv_functions.nms(boxes, scores, .47, offset=offset)[1].tolist() == kept


def test_nms_offset_joins_boxes_that_only_touch(device):
    # 10 * 1 pixels each, side by side, sharing the column x = 9: the overlap is 0 * 0 without
    # the offset, and with it 1 * 1, which makes an IoU of 1 / (10 + 10 - 1) = 0.0526.
    boxes = torch.tensor([[0., 0., 9., 0.], [9., 0., 18., 0.]], device=device)
    scores = torch.tensor([.9, .8], device=device)
    assert mmcv_functions.nms(boxes, scores, .05, offset=0)[1].tolist() == [0, 1]
    assert mmcv_functions.nms(boxes, scores, .05, offset=1)[1].tolist() == [0]
    assert mmcv_functions.nms(boxes, scores, .06, offset=1)[1].tolist() == [0, 1]


def test_nms_keeps_a_box_at_the_threshold(device):
    # The IoU is 60 / 100, exactly 0.6 in float32; only more than the threshold drops a box.
    # float32(0.6) exceeds the Python number 0.6, so the threshold must be rounded as well.
    boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 6.]], device=device)
    scores = torch.tensor([.9, .8], device=device)
    assert mmcv_functions.nms(boxes, scores, .6)[1].tolist() == [0, 1]
    assert mmcv_functions.nms(boxes, scores, .59)[1].tolist() == [0]


def test_nms_of_no_boxes(device):
    boxes, scores = torch.empty(0, 4, device=device), torch.empty(0, device=device)
    detections, indices = mmcv_functions.nms(boxes, scores, .5)
    assert detections.shape == (0, 5) and detections.device.type == device
    assert indices.shape == (0,) and indices.dtype == torch.int64
    # No score passes the threshold, so that none is left for the operator.
    _, indices = mmcv_functions.nms(torch.tensor(ABC, device=device),
                                    torch.tensor([.1, .2, .3], device=device), .5,
                                    score_threshold=.4)
    assert indices.shape == (0,)


def test_nms_score_threshold_and_max_num(device):
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.7, .9, .8], device=device)
    # At 0.85 nothing overlaps enough: B, C, A in the order of their scores.
    assert mmcv_functions.nms(boxes, scores, .85)[1].tolist() == [1, 2, 0]
    assert mmcv_functions.nms(boxes, scores, .85, max_num=2)[1].tolist() == [1, 2]
    # A is filtered out; the indices still refer to all three boxes.
    assert mmcv_functions.nms(boxes, scores, .85, score_threshold=.75)[1].tolist() == [1, 2]
    detections, indices = mmcv_functions.nms(boxes, scores, .85, score_threshold=.75, max_num=1)
    assert indices.tolist() == [1]
    assert detections.shape == (1, 5)


def slow_nms(boxes, scores, threshold, offset):
    """Greedy suppression in plain Python numbers."""
    def size(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        box = boxes[index]
        for other in (boxes[k] for k in kept):
            width = max(0., min(box[2], other[2]) - max(box[0], other[0]) + offset)
            height = max(0., min(box[3], other[3]) - max(box[1], other[1]) + offset)
            overlap = width * height
            if overlap > threshold * (size(box) + size(other) - overlap):
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [.31, .53, .77])
def test_nms_against_a_slow_one(device, offset, threshold):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 40
    boxes = torch.cat((corners, corners + 5 + torch.rand(300, 2, generator=generator) * 30), 1)
    scores = torch.randperm(300, generator=generator) / 300
    expected = slow_nms(boxes.double().tolist(), scores.tolist(), threshold, offset)
    assert 3 < len(expected) < 290
    _, indices = mmcv_functions.nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    assert indices.tolist() == expected


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_other_dtypes(device, dtype):
    # Like ABC, but with areas of up to 2^20, beyond float16's 65504. The corners have at most 8
    # significant bits (816 = 51 * 16), so bfloat16 holds them exactly too.
    boxes = torch.tensor([[0, 0, 1024, 1024], [0, 0, 1024, 816], [512, 0, 1536, 1024]],
                         device=device, dtype=dtype)
    scores = torch.tensor([.75, .5, .25], device=device, dtype=dtype)
    # IoU of A and B: 816 / 1024 = 0.797; of A and C: 512 / 1536 = 0.333.
    detections, indices = mmcv_functions.nms(boxes, scores, .75)
    assert indices.tolist() == [0, 2]
    assert detections.dtype == dtype
    assert mmcv_functions.nms(boxes, scores, .80)[1].tolist() == [0, 1, 2]
    assert mmcv_functions.nms(boxes, scores, .30)[1].tolist() == [0]


@stand_in_only
def test_nms_with_scores_of_another_dtype(device):
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.75, .5, .25], device=device, dtype=torch.float16)
    assert mmcv_functions.nms(boxes, scores, .75)[1].tolist() == [0, 2]


@pytest.mark.parametrize('split_thr', [10000, 2])
def test_batched_nms(device, split_thr):
    # As in ABC, A drops B at a threshold of 0.75, but not if B is of another class.
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.9, .8, .7], device=device)
    classes = torch.tensor([0, 1, 0], device=device)
    config = dict(type='nms', iou_threshold=.75, split_thr=split_thr)
    detections, kept = mmcv_functions.batched_nms(boxes, scores, classes, config)
    assert kept.tolist() == [0, 1, 2]
    assert torch.equal(detections, torch.cat((boxes, scores[:, None]), 1))
    same = torch.zeros_like(classes)
    assert mmcv_functions.batched_nms(boxes, scores, same, config)[1].tolist() == [0, 2]
    config['max_num'] = 1
    assert mmcv_functions.batched_nms(boxes, scores, classes, config)[1].tolist() == [0]


def test_batched_nms_regardless_of_class(device):
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.9, .8, .7], device=device)
    classes = torch.tensor([0, 1, 2], device=device)
    config = dict(type='nms', iou_threshold=.75)
    _, kept = mmcv_functions.batched_nms(boxes, scores, classes, config, class_agnostic=True)
    assert kept.tolist() == [0, 2]
    config['iou_threshold'] = .3
    _, kept = mmcv_functions.batched_nms(boxes, scores, classes,
                                         dict(config, class_agnostic=True))
    assert kept.tolist() == [0]
    assert mmcv_functions.batched_nms(boxes, scores, classes, config)[1].tolist() == [0, 1, 2]
