"""The published detectors' schedule, 12 epochs of AdamW, and settings that all detectors share."""

_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

custom_imports = dict(imports=['evit_mm.detection'], allow_failed_imports=False)

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'attention_biases': dict(decay_mult=0.0)}))
param_scheduler = [
    # From 0.001 of the rate at iteration 0 to all of it at iteration 500, as in the reference;
    # mmengine reaches it at the iteration before `end`.
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
