"""Task-aligned assignment of points."""

import pytest
import torch
from mmdet.models.task_modules.assigners import TaskAlignedAssigner
from mmengine.structures import InstanceData

from evit_mm.detection import TaskAlignedPointAssigner

POINTS = torch.tensor([[x, 8.0, 8.0, 8.0] for x in (4.0, 12.0, 20.0, 28.0, 60.0)])
SCORES = torch.tensor([0.5, 0.5, 0.8, 0.5, 0.9])


def predictions(boxes, scores, points=POINTS):
    return InstanceData(priors=points, bboxes=torch.tensor(boxes), scores=torch.logit(scores))


def truth(boxes, labels):
    return InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4),
                        labels=torch.tensor(labels, dtype=torch.long))


def test_values_worked_out_by_hand():
    # An object from x=0 to 32. The boxes of the four points in it overlap it by 1/2, 1, 3/4 and
    # 1/4, and that of the last point, which is outside, wholly.
    boxes = [[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 32.0, 16.0], [0.0, 0.0, 24.0, 16.0],
             [0.0, 0.0, 8.0, 16.0], [0.0, 0.0, 32.0, 16.0]]
    assigner = TaskAlignedPointAssigner(topk=5, alpha=1.0, beta=2.0)
    result = assigner.assign(predictions(boxes, SCORES[:, None]), truth([0.0, 0, 32, 16], [0]))
    assert result.gt_inds.tolist() == [1, 1, 1, 1, 0]
    assert result.labels.tolist() == [0, 0, 0, 0, -1]
    alignments = torch.tensor([0.5 / 4, 0.5, 0.8 * 9 / 16, 0.5 / 16, 0])
    torch.testing.assert_close(result.max_overlaps, alignments / 0.5)  # the highest overlap is 1


def test_the_best_points_alone_are_chosen():
    boxes = [[0.0, 0.0, 32.0, 16.0]] * 5
    assigner = TaskAlignedPointAssigner(topk=2)
    result = assigner.assign(predictions(boxes, SCORES[:, None]), truth([0.0, 0, 64, 16], [0]))
    assert result.gt_inds.tolist() == [0, 0, 1, 0, 1]
    # The overlap of all is 1/2, so that the labels differ as the scores do.
    torch.testing.assert_close(result.max_overlaps, torch.tensor([0, 0, 0.8 / 0.9 / 2, 0, 0.5]))


def test_a_point_of_two_objects_gets_the_one_that_its_box_overlaps_more():
    boxes = [[0.0, 0.0, 32.0, 16.0]] * 5
    objects = truth([[0.0, 0, 32, 16], [0.0, 0, 64, 16]], [0, 1])
    scores = SCORES[:, None].repeat(1, 2)
    result = TaskAlignedPointAssigner().assign(predictions(boxes, scores), objects)
    assert result.gt_inds.tolist() == [1, 1, 1, 1, 2]
    assert result.labels.tolist() == [0, 0, 0, 0, 1]
    assert result.max_overlaps.max() == 1 and result.max_overlaps[4] == 0.5


@pytest.mark.parametrize('seed', range(5))
def test_the_choice_is_that_of_mmdet(seed):
    generator = torch.Generator().manual_seed(seed)

    def boxes(count):
        corners = 100 * torch.rand(count, 2, generator=generator)
        return torch.cat((corners, corners + 60 * torch.rand(count, 2, generator=generator)), 1)

    points = torch.cat((120 * torch.rand(300, 2, generator=generator), torch.full((300, 2), 8)), 1)
    scores = torch.rand(300, 3, generator=generator)
    objects = InstanceData(bboxes=boxes(9), labels=torch.arange(9) % 3)
    predicted = boxes(300)
    result = TaskAlignedPointAssigner().assign(
        InstanceData(priors=points, bboxes=predicted, scores=torch.logit(scores)), objects)
    expected = TaskAlignedAssigner(13).assign(InstanceData(
        priors=points[:, [0, 1, 0, 1]], bboxes=predicted, scores=scores), objects)
    assert torch.equal(result.gt_inds, expected.gt_inds)
    assert torch.equal(result.labels, expected.labels)
    assert (result.max_overlaps[result.gt_inds == 0] == 0).all()
    assert result.gt_inds.any() and result.max_overlaps.max() <= 1


def test_images_without_objects_and_objects_without_points():
    boxes = [[0.0, 0.0, 32.0, 16.0]] * 5
    for objects in (truth([], []), truth([[0.0, 0, 3, 3]], [0])):
        result = TaskAlignedPointAssigner().assign(
            predictions(boxes, SCORES[:, None]), objects)
        assert not result.gt_inds.any() and not result.max_overlaps.any()


def test_half_precision():
    # 0.1 ** 6 * 0.01 is 0 in half precision.
    boxes = [[0.0, 0.0, 32.0, 1.6]] * 5
    objects = truth([0.0, 0, 32, 16], [0])
    low = torch.full((5, 1), 0.01)
    half = predictions(boxes, low)
    half.bboxes, half.scores = half.bboxes.half(), half.scores.half()
    result = TaskAlignedPointAssigner().assign(half, objects)
    assert result.gt_inds.tolist() == [1, 1, 1, 1, 0]
    torch.testing.assert_close(result.max_overlaps[:4], torch.full((4,), 0.1), rtol=0.01, atol=0)
