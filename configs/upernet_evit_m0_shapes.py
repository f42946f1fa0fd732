"""UperNet-M0 on generated scenes, from random weights: `make demo-seg` trains it in minutes.

    tools/prepare_data.py shapes
    tools/train.py configs/upernet_evit_m0_shapes.py

The scenes have ADE20K's folders and labels, with eleven of its 150 classes. `evit-mm train
upernet_evit_m0_shapes --masks DIR` trains on label maps of your own. In a config, set
`metainfo=dict(classes=...)` in the datasets and their number in both heads, and
`reduce_zero_label=True` in the datasets if 0 means unlabelled and 1 is the first class.
"""

_base_ = './upernet_evit_m0_ade20k.py'

data_root = 'data/shapes/ade/'
size = (192, 192)
steps = 200

# A light head suffices for these images and trains on two CPU cores.
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(norm_eval=False, init_cfg=None),
    decode_head=dict(channels=64),
    auxiliary_head=dict(channels=32))

resize = dict(type='Resize', scale=size, keep_ratio=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    dict(type='LoadAnnotations'),  # after Resize: evaluated at the original image size
    dict(type='PackSegInputs'),
]

# Takes the numbers in the label maps as they are, whatever the classes are called.
label_maps = dict(
    type='LabelMapDataset', data_root=data_root,
    metainfo=dict(classes_of=dict(type='ADE20KDataset')))
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(**label_maps, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(**label_maps, pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=steps, val_interval=steps)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=steps, eta_min_ratio=0.01),
]
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=steps, max_keep_ckpts=1))
log_processor = dict(window_size=25)
