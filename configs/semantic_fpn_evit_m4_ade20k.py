"""Semantic FPN on EfficientViT-M4, ADE20K, 40k iterations of 32 crops of 512x512.

docs/segmentation.md gives the reasons for the strides, the width and the window sizes.
"""

_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    './_base_/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_40k.py',
]

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        stem_strides=(8,),  # strides 8 to 64
        window_sizes=8,  # 512 / 16, / 32 and / 64 are multiples of 8
        norm_eval=True,  # keep pretrained BN statistics; --from-scratch sets False
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m4')),
    neck=dict(
        _delete_=True,
        type='EfficientViTFPN',
        in_channels=[64, 128, 256, 384],
        in_strides=[8, 16, 32, 64],
        out_channels=128),
    decode_head=dict(
        in_channels=[128, 128, 128, 128],
        feature_strides=[8, 16, 32, 64],
        channels=128,
        num_classes=150))

train_dataloader = dict(batch_size=32)  # on one GPU
auto_scale_lr = dict(enable=False, base_batch_size=32)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(decay_mult=0.0)}))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000),
]
