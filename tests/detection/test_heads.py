"""SyncedRetinaHead computes in several processes what RetinaHead computes in one."""

import pytest
import torch
from mmdet.models.dense_heads import RetinaHead
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData

from evit_mm.detection import SyncedRetinaHead, heads

SIZE = 64
BOXES = [[[4., 4., 40., 40.]],
         [[0., 0., 20., 20.], [10., 10., 50., 60.], [30., 2., 62., 30.]]]


def build(kind):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(dict(
        type=kind, num_classes=2, in_channels=4, feat_channels=4, stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1,
                              ratios=[1.0], strides=[8, 16]),
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.4, neg_iou_thr=0.3,
                                     min_pos_iou=0),
                       sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1)))


def losses(head, maps, images):
    """Return the losses of some of the images, summed over the levels."""
    metas = [dict(img_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE)) for _ in images]
    targets = [InstanceData(bboxes=torch.tensor(BOXES[i]),
                            labels=torch.zeros(len(BOXES[i]), dtype=torch.long)) for i in images]
    outputs = head([level[images] for level in maps])
    return {name: sum(values)
            for name, values in head.loss_by_feat(*outputs, targets, metas).items()}


@pytest.fixture
def maps():
    return [torch.randn(2, 4, SIZE // stride, SIZE // stride) for stride in (8, 16)]


def test_single_process(maps):
    plain, synced = build('RetinaHead'), build('SyncedRetinaHead')
    assert type(plain) is RetinaHead and type(synced) is SyncedRetinaHead
    assert plain.state_dict().keys() == synced.state_dict().keys()
    assert losses(synced, maps, [0, 1]) == losses(plain, maps, [0, 1])


def test_mean_over_processes_is_the_loss_of_the_whole_batch(maps, monkeypatch):
    synced = build('SyncedRetinaHead')
    positives = []
    monkeypatch.setattr(heads, 'reduce_mean', lambda x: positives.append(x) or x)
    for image in (0, 1):
        losses(synced, maps, [image])
    assert positives[0] != positives[1]

    monkeypatch.setattr(heads, 'reduce_mean', lambda x: sum(positives) / 2)
    separate = [losses(synced, maps, [image]) for image in (0, 1)]
    together = losses(build('RetinaHead'), maps, [0, 1])
    for name, value in together.items():
        mean = (separate[0][name] + separate[1][name]) / 2
        torch.testing.assert_close(mean, value)
