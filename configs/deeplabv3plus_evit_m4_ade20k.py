"""DeepLabV3+ on EfficientViT-M4, ADE20K, 160k iterations of 16 crops of 512x512.

The pyramid pooling works at stride 16, on all stages together, as EfficientViT has no dilated form.
Its dilations are those of DeepLabV3+ for this stride. The schedule is that of the UperNet configs.
"""

_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    './_base_/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
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
    decode_head=dict(
        in_channels=[128, 256, 384],
        in_index=[1, 2, 3],
        input_transform='resize_concat',
        channels=128,
        dilations=(1, 6, 12, 18),
        c1_in_channels=64,  # stride 8
        c1_channels=48,
        num_classes=150),
    auxiliary_head=dict(in_channels=128, in_index=1, channels=64, num_classes=150))

train_dataloader = dict(batch_size=16)  # on one GPU
auto_scale_lr = dict(enable=False, base_batch_size=16)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(decay_mult=0.0)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
