"""Overlaps of boxes."""

import importlib
import math

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')

# Unit squares around (1, 1): one upright, one turned by 45 degrees. Four corners of the upright one
# are cut off: triangles whose height is the distance from a corner to the turned edge, sqrt(1/2) -
# 1/2. Each has the area of the height squared.
OCTAGON = 1 - 4 * (math.sqrt(.5) - .5) ** 2


@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps_by_hand(device, mode, offset):
    if COMPILED and device == 'cpu':
        pytest.skip('the compiled operator needs CUDA for some dtypes')
    first = torch.tensor([[0., 0., 9., 9.], [20., 20., 29., 29.]], device=device)
    second = torch.tensor([[0., 0., 9., 4.], [9., 0., 18., 9.], [0., 0., 9., 9.]], device=device)
    area, half, shared = (100, 50, 10) if offset else (81, 36, 0)
    expected = {'iou': [half / area, shared / (2 * area - shared), 1.],
                'iof': [half / area, shared / area, 1.]}[mode]
    overlaps = mmcv_functions.bbox_overlaps(first, second, mode, offset=offset)
    assert overlaps.shape == (2, 3)
    assert overlaps[0].tolist() == pytest.approx(expected)
    assert overlaps[1].abs().max() == 0
    aligned = mmcv_functions.bbox_overlaps(first[:1].expand(3, 4), second, mode, aligned=True,
                                           offset=offset)
    assert torch.equal(aligned, overlaps[0])


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_bbox_overlaps_in_other_dtypes(device, dtype):
    boxes = torch.tensor([[0, 0, 1024, 1024], [0, 0, 1024, 512]], device=device, dtype=dtype)
    assert mmcv_functions.bbox_overlaps(boxes, boxes).tolist() == [[1., .5], [.5, 1.]]


@stand_in_only
def test_bbox_overlaps_of_nothing(device):
    none, point = torch.empty(0, 4, device=device), torch.zeros(1, 4, device=device)
    assert mmcv_functions.bbox_overlaps(none, point).shape == (0, 1)
    assert mmcv_functions.bbox_overlaps(point, none).shape == (1, 0)
    assert mmcv_functions.bbox_overlaps(point, point).tolist() == [[0.]]


def test_rotated_overlaps_by_hand(device):
    first = torch.tensor([[1., 1., 1., 1., 0.], [1., 1., 2., 1., math.pi / 2]], device=device)
    second = torch.tensor([
        [1., 1., 1., 1., math.pi / 4], [1., 1., 1., 2., 0.], [1.5, 1., 1., 1., 0.],
        [9., 9., 1., 1., 1.]], device=device)
    overlaps = mmcv_functions.box_iou_rotated(first, second)
    # The second box is upright, 1 wide and 2 high: the turned square is in it but for its corners
    # at the left and right, each of (sqrt(1/2) - 1/2) ** 2.
    inside = 1 - 2 * (math.sqrt(.5) - .5) ** 2
    expected = [[OCTAGON / (2 - OCTAGON), .5, 1 / 3, 0.],
                [inside / (3 - inside), 1., .5 / 2.5, 0.]]
    assert torch.allclose(overlaps.cpu(), torch.tensor(expected), atol=1e-5)
    foreground = mmcv_functions.box_iou_rotated(first, second, mode='iof')
    expected = [[OCTAGON, 1., .5, 0.], [inside / 2, 1., .25, 0.]]
    assert torch.allclose(foreground.cpu(), torch.tensor(expected), atol=1e-5)
    aligned = mmcv_functions.box_iou_rotated(first, second[:2], aligned=True)
    assert torch.allclose(aligned, overlaps.diagonal(), atol=1e-6)


def test_angles_turn_clockwise_unless_told_otherwise(device):
    # 30 degrees, y pointing down: the long axis points down to the right, as the other box's edge.
    box = torch.tensor([[0., 0., 4., 2., math.pi / 6]], device=device)
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    corners = [(x * cos - y * sin, x * sin + y * cos) for x, y in ((-2, -1), (2, -1), (2, 1),
                                                                   (-2, 1))]
    polygon = torch.tensor([[v for point in corners for v in point]], device=device)
    upright = torch.tensor([[1., 1., 2., 2., 0.]], device=device)
    square = torch.tensor([[0., 0., 2., 0., 2., 2., 0., 2.]], device=device)
    clockwise = mmcv_functions.box_iou_rotated(box, upright)
    assert clockwise.item() == pytest.approx(0.30195924530559165, abs=1e-5)  # clipped by hand
    other = mmcv_functions.box_iou_rotated(box, upright, clockwise=False)
    assert other.item() == pytest.approx(0.10647013874218003, abs=1e-5)
    if COMPILED:
        return  # its overlap of quadrilaterals changes with the order of their corners
    assert torch.allclose(clockwise, mmcv_functions.box_iou_quadri(polygon, square), atol=1e-5)
    mirrored = polygon * torch.tensor([1., -1.], device=device).repeat(4)
    assert torch.allclose(other, mmcv_functions.box_iou_quadri(mirrored, square), atol=1e-5)


def slow_intersection(first, second):
    """Clip a convex polygon by the half planes of another's edges; return the area."""
    def oriented(points):
        area = sum(a[0] * b[1] - a[1] * b[0]
                   for a, b in zip(points, points[1:] + points[:1], strict=True)) / 2
        return (points, area) if area > 0 else (points[::-1], -area)

    polygon, clip = oriented(first)[0], oriented(second)[0]
    for a, b in zip(clip, clip[1:] + clip[:1], strict=True):
        def side(p, a=a, b=b):
            return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])

        clipped = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            if side(p) >= 0:
                clipped.append(p)
            if (side(p) >= 0) != (side(q) >= 0):
                t = side(p) / (side(p) - side(q))
                clipped.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        polygon = clipped
        if not polygon:
            return 0.
    return oriented(polygon)[1]


def random_rotated(count, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    return draws * torch.tensor([8., 8., 6., 6., 7.]) + torch.tensor([100., 50., .5, .5, -3.])


def polygons(boxes):
    result = []
    for x, y, w, h, angle in boxes.tolist():
        c, s = math.cos(angle), math.sin(angle)
        result.append([(x + u * c - v * s, y + u * s + v * c)
                       for u, v in ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2),
                                    (-w / 2, h / 2))])
    return result


def test_rotated_and_quadrilateral_overlaps_against_clipping(device):
    first, second = random_rotated(12, 0), random_rotated(15, 1)
    expected = torch.tensor([[slow_intersection(p, q) for q in polygons(second)]
                             for p in polygons(first)], dtype=torch.float64)
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (first, second)]
    expected = expected / (areas[0][:, None] + areas[1] - expected)
    assert (expected > .1).sum() > 20 and (expected == 0).sum() > 5
    if COMPILED:  # it takes float32 alone
        overlaps = mmcv_functions.box_iou_rotated(first.float().to(device),
                                                  second.float().to(device))
        assert torch.allclose(overlaps.cpu().double(), expected, atol=1e-4)
        return
    overlaps = mmcv_functions.box_iou_rotated(first.to(device), second.to(device))
    assert torch.allclose(overlaps.cpu(), expected, atol=1e-9)
    corners = [torch.tensor(polygons(boxes), dtype=torch.float64).flatten(1).to(device)
               for boxes in (first, second)]
    assert torch.allclose(mmcv_functions.box_iou_quadri(*corners).cpu(), expected, atol=1e-9)
    backwards = [c.view(-1, 4, 2).flip(1).flatten(1) for c in corners]
    assert torch.allclose(mmcv_functions.box_iou_quadri(*backwards).cpu(), expected, atol=1e-9)


@stand_in_only
def test_a_box_overlaps_itself_whole(device):
    boxes = random_rotated(50, 2).float().to(device)
    overlaps = mmcv_functions.box_iou_rotated(boxes, boxes, aligned=True)
    assert torch.allclose(overlaps, torch.ones_like(overlaps), atol=1e-6)
    flat = torch.tensor([[1., 1., 0., 2., .3]], device=device)
    assert mmcv_functions.box_iou_rotated(flat, flat).item() == 0
    assert mmcv_functions.box_iou_rotated(flat[:0], flat).shape == (0, 1)


@pytest.mark.parametrize('labelled', [False, True])
def test_rotated_nms(device, labelled):
    if COMPILED and labelled and device == 'cpu':
        pytest.skip('the compiled operator ignores labels on a CPU')
    boxes = torch.tensor([[1., 1., 1., 1., 0.], [1., 1., 1., 1., math.pi / 4],
                          [1.5, 1., 1., 1., 0.], [9., 9., 1., 1., 0.]], device=device)
    scores = torch.tensor([.6, .9, .8, .7], device=device)
    labels = torch.tensor([0, 1, 0, 0], device=device) if labelled else None
    # 1 and 0 overlap by OCTAGON / (2 - OCTAGON) = 0.71, 2 and 0 by 1/3. Half of 1
    # is on the side of 2, but for half of two corners: (OCTAGON + 1) / 4 = 0.457, an IoU of 0.296.
    detections, kept = mmcv_functions.nms_rotated(boxes, scores, .5, labels)
    assert kept.tolist() == ([1, 2, 3, 0] if labelled else [1, 2, 3])
    assert torch.equal(detections, torch.cat((boxes, scores[:, None]), 1)[kept])
    assert mmcv_functions.nms_rotated(boxes, scores, .29, labels)[1].tolist() \
        == ([1, 2, 3] if labelled else [1, 3])


@pytest.mark.parametrize('labelled', [False, True])
def test_quadrilateral_nms(device, labelled):
    if COMPILED and labelled and device == 'cpu':
        pytest.skip('the compiled operator ignores labels on a CPU')
    square = torch.tensor([0., 0., 2., 0., 2., 2., 0., 2.])
    boxes = torch.stack((square, square * torch.tensor([1., .8]).repeat(4), square + 5)).to(device)
    scores = torch.tensor([.6, .9, .8], device=device)
    labels = torch.tensor([0, 1, 0], device=device) if labelled else None
    assert mmcv_functions.nms_quadri(boxes, scores, .75, labels)[1].tolist() \
        == ([1, 2, 0] if labelled else [1, 2])
    assert mmcv_functions.nms_quadri(boxes, scores, .85, labels)[1].tolist() == [1, 2, 0]
