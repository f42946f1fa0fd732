"""RetinaNet on EfficientViT-M4, COCO, 12 epochs: the protocol of the published detector."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedule_1x_adamw.py',
    'mmdet::_base_/default_runtime.py',
    'mmdet::retinanet/retinanet_tta.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        norm_eval=True,  # keep pretrained BN statistics; --from-scratch sets False
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m4')),
    neck=dict(
        _delete_=True,
        type='EfficientViTFPN',
        in_channels=[128, 256, 384],
        out_channels=256,
        num_extra_trans_convs=1,  # stride 8
        num_outs=5),  # strides 8 to 128
    # Averages the loss over all processes, so that N of them equal one with an N times larger
    # batch; RetinaHead averages within each process.
    bbox_head=dict(type='SyncedRetinaHead'))
