"""ADE20K in crops of 512x512, and the settings that all segmentation configs share."""

_base_ = 'mmseg::_base_/datasets/ade20k.py'

custom_imports = dict(imports=['evit_mm.segmentation'], allow_failed_imports=False)

val_evaluator = dict(type='UnroundedIoUMetric')
test_evaluator = val_evaluator
