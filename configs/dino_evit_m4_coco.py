"""DINO on EfficientViT-M4, COCO, 12 epochs: DINO's own schedule.

Its four levels are the maps of the backbone, where a ResNet has three and one that is added.
"""

_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['evit_mm.detection'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        stem_strides=(8,),  # strides 8 to 64
        norm_eval=True,  # keep pretrained BN statistics; --from-scratch sets False
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m4')),
    neck=dict(in_channels=[64, 128, 256, 384]))

optim_wrapper = dict(
    # The longer key wins, so that it repeats the factor of the backbone.
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(lr_mult=0.1, decay_mult=0.0)}))
