"""Metrics of a config are replaced where they are MMDetection's or MMSegmentation's own."""

from mmengine.config import Config

from evit_mm.engine.evaluation import evaluate_by_class

OURS = 'evit_mm.detection.metric.PerClassCocoMetric'
IOU = 'evit_mm.segmentation.metric.UnroundedIoUMetric'


def replaced(scope, evaluator):
    config = Config(dict(default_scope=scope, test_evaluator=evaluator, test_dataloader=dict(
        dataset=dict(data_root='/data', data_prefix=dict(img_path='val'), pipeline=[]))))
    evaluate_by_class(config)
    return config.test_evaluator


def test_metrics_are_replaced_with_their_arguments():
    assert replaced('mmdet', dict(type='CocoMetric', metric='bbox')) == dict(
        type=OURS, metric='bbox')
    assert replaced('mmseg', dict(type='mmdet.CocoMetric')) == dict(type=OURS)
    assert replaced('mmseg', dict(type='IoUMetric', iou_metrics=['mIoU'])) == dict(
        type=IOU, iou_metrics=['mIoU'], image_root='/data/val')
    assert replaced('mmseg', dict(type='UnroundedIoUMetric'))['image_root'] == '/data/val'


def test_others_stay():
    others = [dict(type='LVISMetric'), dict(type='mmseg.CityscapesMetric'),
              dict(type='CocoMetric', _scope_='mine'), dict(type='DumpDetResults')]
    assert replaced('mmdet', list(others)) == others


def test_metrics_inside_an_evaluator():
    evaluator = replaced('mmdet', dict(type='Evaluator', metrics=[dict(type='CocoMetric')]))
    assert evaluator.metrics[0].type == OURS


def test_a_class_in_place_of_its_name():
    from mmdet.evaluation import CocoMetric

    assert replaced('mmdet', [dict(type=CocoMetric)])[0].type == OURS
