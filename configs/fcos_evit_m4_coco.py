"""FCOS on EfficientViT-M4, COCO, 12 epochs.

The head has the later improvements of FCOS: center sampling, normalized boxes and GIoU loss.
"""

_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'

custom_imports = dict(imports=['evit_mm.detection'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(  # that of the ImageNet weights, in place of Caffe's
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
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
        num_outs=5))  # strides 8 to 128

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(decay_mult=0.0)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
