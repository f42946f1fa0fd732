"""Operators that classes call."""

import importlib
import sys

import pytest
from mmengine.registry import MODELS
from torch import nn

from evit_mm.compat import mmcv_ops
from evit_mm.compat.mmcv_ops.usage import called_operators

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')


class Direct(nn.Module):
    def forward(self, x):
        return [mmcv_functions.nms(x, x, .5) for _ in range(2)]  # through a module's attribute


class Inherits(Direct):
    @property
    def pooled(self):
        return mmcv_functions.roi_pool(self, self, 2)  # apply of an autograd function

    @staticmethod
    def suppress(x):
        return mmcv_functions.three_nn(x, x)


def neighbor(x):
    return mmcv_functions.nms_match(x, .5)


class CallsNeighbor(nn.Module):
    def forward(self, x):
        return neighbor(x)


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = mmcv_functions.Voxelization  # counts for itself if it is built


@pytest.mark.parametrize(('cls', 'operators'), [
    (nn.Conv2d, set()),
    (Direct, {'nms'}),
    (Inherits, {'nms', 'roi_pool_forward', 'roi_pool_backward', 'three_nn_forward'}),
    (CallsNeighbor, {'nms_match'}),
    (Holds, set()),
    (mmcv_functions.RoIAlign, {'roi_align_forward', 'roi_align_backward'}),
    (mmcv_functions.MaskedConv2d, {'masked_im2col_forward', 'masked_col2im_forward'}),
])
def test_operators_that_a_class_calls(cls, operators):
    assert called_operators(cls) == operators


@pytest.mark.skipif(COMPILED, reason='a compiled mmcv lacks nothing')
def test_missing_operators(monkeypatch):
    assert mmcv_ops.missing_operators(Direct) == []
    assert mmcv_ops.missing_operators(Inherits) == ['three_nn_forward']
    assert 'indice_conv_forward' in mmcv_ops.missing_operators(MODELS.get('SubMConv2d'))
    monkeypatch.setitem(sys.modules, 'mmcv._ext', importlib.import_module('types'))
    assert mmcv_ops.missing_operators(Inherits) == []  # some other extension


@pytest.mark.skipif(COMPILED, reason='about the stand-in')
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_models_of_detection_and_segmentation_lack_nothing(package):
    pytest.importorskip(f'{package}.models')
    registries = importlib.import_module(f'{package}.registry')
    classes = [cls for registry in (registries.MODELS, registries.TASK_UTILS)
               for cls in registry.module_dict.values() if isinstance(cls, type)]
    assert len(classes) > 80
    assert {cls.__name__: mmcv_ops.missing_operators(cls) for cls in classes
            if mmcv_ops.missing_operators(cls)} == {}
    called = set().union(*(called_operators(cls) for cls in classes))
    assert called >= {'mmdet': {'nms', 'nms_match', 'deform_conv_forward'},
                      'mmseg': set()}[package] | {'sigmoid_focal_loss_forward'}
