"""UperNet-M0 overfits two real images from random weights: a check that the model learns.

    tools/train.py configs/upernet_evit_m0_memorize.py --seed 0 --data-root ADEChallengeData2016

It trains and evaluates on the first two training images, at 512x512.
"""

_base_ = './upernet_evit_m0_ade20k.py'

num_images = 2
steps = 400

model = dict(backbone=dict(norm_eval=False, init_cfg=None))

resize = dict(type='Resize', scale=(512, 512), keep_ratio=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    resize,
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations'),  # after Resize: evaluated at the original image size
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=num_images,
    num_workers=1,
    dataset=dict(indices=num_images, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        indices=num_images,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=steps, val_interval=steps)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=steps, eta_min_ratio=0.01),
]
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.0), clip_grad=dict(max_norm=10.0))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=steps))
log_processor = dict(window_size=20)
auto_scale_lr = dict(base_batch_size=num_images)
