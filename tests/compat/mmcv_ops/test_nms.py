"""Suppression of overlapping boxes."""

import importlib
import math

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


# --- soft NMS ---------------------------------------------------------------------------------


@pytest.mark.parametrize(('method', 'kept', 'scores'), [
    ('naive', [0, 2], [.9, .7]),  # A and B have an IoU of 0.8, A and C 1/3, B and C 2/7
    ('linear', [0, 2, 1], [.9, .7, .8 * .2]),
    ('gaussian', [0, 2, 1], [.9, .7 * math.exp(-2 / 9),
                             .8 * math.exp(-2 * .64) * math.exp(-2 * 4 / 49)]),
])
def test_soft_nms_by_hand(method, kept, scores):
    boxes = torch.tensor(ABC)
    detections, indices = mmcv_functions.soft_nms(
        boxes, torch.tensor([.9, .8, .7]), .5, sigma=.5, min_score=.05, method=method)
    assert indices.dtype == torch.int64 and indices.tolist() == kept
    assert torch.equal(detections[:, :4], boxes[kept])
    assert detections[:, 4].tolist() == pytest.approx(scores, abs=1e-6)
    # B's score of 0.16 or 0.19 does not reach this minimum.
    _, indices = mmcv_functions.soft_nms(boxes, torch.tensor([.9, .8, .7]), .5, sigma=.5,
                                         min_score=.2, method=method)
    assert indices.tolist() == [0, 2]


@pytest.mark.parametrize(('offset', 'score'), [(0, .8 * (1 - 36 / 81)), (1, .8 * (1 - 50 / 100))])
def test_soft_nms_offset_counts_the_last_pixel(offset, score):
    boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 4.]])
    detections, _ = mmcv_functions.soft_nms(boxes, torch.tensor([.9, .8]), .3, offset=offset)
    assert detections[1, 4].item() == pytest.approx(score)


def slow_soft_nms(boxes, scores, threshold, sigma, minimum, method, offset):
    """Soft NMS box by box, on lists from which the dropped ones are replaced by the last."""
    left = list(zip(range(len(boxes)), boxes, scores, strict=True))

    def area(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    done = 0
    while done < len(left):
        best = max(range(done, len(left)), key=lambda i: (left[i][2], -i))
        left[done], left[best] = left[best], left[done]
        box = left[done][1]
        done += 1
        at = done
        while at < len(left):
            index, other, score = left[at]
            overlap = (max(0., min(box[2], other[2]) - max(box[0], other[0]) + offset)
                       * max(0., min(box[3], other[3]) - max(box[1], other[1]) + offset))
            iou = overlap / (area(box) + area(other) - overlap)
            if method == 'gaussian':
                score *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                score *= 0. if method == 'naive' else 1 - iou
            left[at] = (index, other, score)
            if score < minimum:
                left[at] = left[-1]
                left.pop()
            else:
                at += 1
    return [index for index, _, _ in left], [score for _, _, score in left]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_against_a_slow_one(method, offset):
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(80, 2, generator=generator, dtype=torch.float64) * 40
    size = 5 + torch.rand(80, 2, generator=generator, dtype=torch.float64) * 20
    boxes = torch.cat((corners, corners + size), dim=1)
    # Quarters, so that many scores are equal: the order among these is mmcv's.
    scores = torch.randint(1, 5, (80,), generator=generator) / 4
    if COMPILED:
        boxes = boxes.float()
    kept, expected = slow_soft_nms(boxes.tolist(), scores.tolist(), .3, .5, .1, method, offset)
    assert 5 < len(kept) < 80
    detections, indices = mmcv_functions.soft_nms(boxes, scores.to(boxes), .3, .5, .1, method,
                                                  offset)
    assert indices.tolist() == kept
    assert detections[:, 4].tolist() == pytest.approx(expected, rel=1e-4 if COMPILED else 1e-12)


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_soft_nms_in_other_dtypes(dtype):
    boxes = torch.tensor(ABC, dtype=dtype)
    detections, indices = mmcv_functions.soft_nms(boxes, torch.tensor([.75, .5, .25], dtype=dtype),
                                                  .5)
    assert indices.tolist() == [0, 2, 1]
    assert detections.dtype == dtype
    assert detections[2, 4].item() == pytest.approx(.1, rel=.01)


@stand_in_only
def test_soft_nms_of_boxes_without_area():
    boxes = torch.tensor([[4., 3., 5., 3.], [4., 3., 5., 3.], [3., 1., 3., 1.]])
    detections, indices = mmcv_functions.soft_nms(boxes, torch.tensor([.9, .8, .7]), .3,
                                                  method='gaussian')
    assert indices.tolist() == [0, 1, 2]
    assert torch.equal(detections[:, 4], torch.tensor([.9, .8, .7]))


def test_soft_nms_of_no_boxes():
    detections, indices = mmcv_functions.soft_nms(torch.empty(0, 4), torch.empty(0))
    assert detections.shape == (0, 5) and indices.shape == (0,)


def test_soft_nms_of_batches_and_arrays(device):
    boxes, scores = torch.tensor(ABC, device=device), torch.tensor([.9, .8, .7], device=device)
    classes = torch.tensor([0, 1, 0], device=device)
    config = dict(type='soft_nms', iou_threshold=.3, min_score=.05)
    detections, kept = mmcv_functions.batched_nms(boxes, scores, classes, config)
    assert kept.tolist() == [0, 1, 2] and kept.device.type == device
    assert detections[:, 4].tolist() == pytest.approx([.9, .8, .7 * 2 / 3])
    detections, kept = mmcv_functions.soft_nms(boxes.cpu().numpy(), scores.cpu().numpy(), .5)
    assert kept.tolist() == [0, 2, 1] and detections.shape == (3, 5)


# --- groups of boxes --------------------------------------------------------------------------


@pytest.mark.parametrize(('threshold', 'groups'), [
    (.85, [[0], [1], [2]]), (.75, [[0, 1], [2]]), (.3, [[0, 1, 2]])])
def test_nms_match_by_hand(threshold, groups):
    boxes = torch.tensor([[*box, score] for box, score in zip(ABC, [.9, .8, .7], strict=True)])
    assert [group.tolist() for group in mmcv_functions.nms_match(boxes, threshold)] == groups
    arrays = mmcv_functions.nms_match(boxes.numpy(), threshold)
    assert [group.tolist() for group in arrays] == groups
    # The order of the boxes does not matter; C is better than B here.
    turned = torch.tensor([[*ABC[1], .5], [*ABC[2], .7], [*ABC[0], .9]])
    names = {(.85): [[2], [1], [0]], (.75): [[2, 0], [1]], (.3): [[2, 1, 0]]}
    assert [group.tolist() for group in mmcv_functions.nms_match(turned, threshold)] \
        == names[threshold]


def test_nms_match_includes_the_threshold_and_takes_no_boxes():
    boxes = torch.tensor([[0., 0., 10., 10., .9], [0., 0., 10., 5., .8]])
    assert [len(group) for group in mmcv_functions.nms_match(boxes, .5)] == [2]
    assert [len(group) for group in mmcv_functions.nms_match(boxes, .51)] == [1, 1]
    assert mmcv_functions.nms_match(torch.empty(0, 5), .5) == []


@pytest.mark.parametrize('threshold', [.3, .6])
def test_nms_match_keeps_the_boxes_that_nms_keeps(threshold):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(100, 2, generator=generator) * 40
    boxes = torch.cat((corners, corners + 5 + torch.rand(100, 2, generator=generator) * 30), 1)
    scores = torch.randperm(100, generator=generator) / 100
    groups = mmcv_functions.nms_match(torch.cat((boxes, scores[:, None]), 1), threshold)
    assert sorted(index for group in groups for index in group.tolist()) == list(range(100))
    assert [group[0].item() for group in groups] == slow_nms(
        boxes.double().tolist(), scores.tolist(), threshold, 0)
