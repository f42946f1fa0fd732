"""RTMDet-s with EfficientViT-M4 as its backbone, COCO, 300 epochs: RTMDet's own schedule.

Strides 8 to 64 in place of 8 to 32, so that the stem's map is used as well as all stages.
"""

_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

custom_imports = dict(imports=['evit_mm.detection'], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(pad_size_divisor=64),  # the neck needs maps that exactly double
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        stem_strides=(8,),
        # BN learns its statistics, as in RTMDet: there are 32 images on each GPU.
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m4')),
    neck=dict(in_channels=[64, 128, 256, 384]),
    bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64])))

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(decay_mult=0.0)}))

# For 8 GPUs with 32 images each; the base has MMDetection's usual 16 here.
auto_scale_lr = dict(base_batch_size=256)
