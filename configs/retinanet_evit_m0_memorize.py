"""RetinaNet-M0 overfits eight real images from random weights: a check that the model learns.

    tools/train.py configs/retinanet_evit_m0_memorize.py --seed 0 --data-root COCO

It trains and evaluates on the first eight training images that have objects, all at 416x416.
Neck and head have half the published width, and the head two convolutions instead of four, so
that two CPU cores train it in minutes: at full width, nine tenths of the multiply-adds are in the
head.
"""

_base_ = './retinanet_evit_m0_coco.py'

num_images = 8
steps = 240

model = dict(
    data_preprocessor=dict(pad_size_divisor=1),
    backbone=dict(norm_eval=False, init_cfg=None),
    neck=dict(out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128, stacked_convs=2))

resize = dict(type='Resize', scale=(416, 416), keep_ratio=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    resize,
    dict(type='PackDetInputs'),
]
# Annotations are packed with the images, so that the metric needs no file of these eight alone.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')),
]

train_dataloader = dict(
    batch_size=4,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(indices=num_images, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4,
    dataset=dict(
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        test_mode=False,  # filter empty images, as in training
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        indices=num_images,
        pipeline=test_pipeline))
val_evaluator = dict(ann_file=None)
test_dataloader = val_dataloader
test_evaluator = val_evaluator

train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=steps, val_interval=steps)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=steps, eta_min_ratio=0.01),
]
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.0), clip_grad=dict(max_norm=10.0))
default_hooks = dict(
    logger=dict(interval=20, ignore_last=False), checkpoint=dict(by_epoch=False, interval=steps))
log_processor = dict(by_epoch=False, window_size=20)
auto_scale_lr = dict(base_batch_size=4)
tta_pipeline = None  # COCO's scales do not fit these images; --tta only flips
