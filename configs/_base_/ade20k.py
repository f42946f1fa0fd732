"""ADE20K at crop 512, and what every segmentation config here needs."""

_base_ = 'mmseg::_base_/datasets/ade20k.py'

custom_imports = dict(imports=['evit_mm.segmentation'], allow_failed_imports=False)

val_evaluator = dict(type='UnroundedIoUMetric')
test_evaluator = val_evaluator
