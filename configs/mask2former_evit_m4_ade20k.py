"""Mask2Former on EfficientViT-M4, ADE20K, 160k iterations of 16 crops of 512x512.

The schedule is Mask2Former's own. Masks are predicted at stride 8, the finest of the maps.
"""

_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'

custom_imports = dict(
    imports=['mmdet.models', 'evit_mm.segmentation'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        stem_strides=(8,),  # strides 8 to 64
        window_sizes=8,  # 512 / 16, / 32 and / 64 are multiples of 8
        norm_eval=True,  # keep pretrained BN statistics; --from-scratch sets False
        init_cfg=dict(type='Pretrained', checkpoint='evit://efficientvit_m4')),
    decode_head=dict(in_channels=[64, 128, 256, 384], strides=[8, 16, 32, 64]))

train_dataloader = dict(batch_size=16)  # on one GPU
optim_wrapper = dict(
    # The longer key wins, so that it repeats the factor of the backbone.
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(lr_mult=0.1, decay_mult=0.0)}))
val_evaluator = dict(type='UnroundedIoUMetric')
test_evaluator = val_evaluator
