"""Models that need operators which are not available."""

import importlib

import pytest
from mmengine.registry import MODELS
from torch import nn

from evit_mm.compat import mmcv_ops
from evit_mm.engine.preflight import check_operators
from evit_mm.errors import UserError

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')


def test_a_model_whose_operators_are_there_passes():
    check_operators(nn.Sequential(
        MODELS.build(dict(type='DCNv2', in_channels=2, out_channels=2, kernel_size=3)),
        MODELS.build(dict(type='carafe', channels=2, scale_factor=2)),
        mmcv_functions.RoIAlign(2)))


@pytest.mark.skipif(COMPILED, reason='a compiled mmcv lacks nothing')
def test_the_operator_and_its_module_are_named():
    neck = MODELS.build(dict(type='SubMConv2d', in_channels=2, out_channels=2, kernel_size=3))
    model = nn.ModuleDict({'backbone': nn.Conv2d(3, 2, 1), 'neck': neck})
    sentence = (r"mmcv op '\w+' is not available, which neck \(SubMConv2d\) needs: "
                'mmcv is installed without compiled operators')
    with pytest.raises(UserError, match=sentence) as info:
        check_operators(model)
    assert isinstance(info.value, mmcv_ops.MissingOpError)
    assert info.value.operator in mmcv_ops.missing_operators(type(neck))
    with pytest.raises(UserError, match=r'which the model \(SubMConv2d\) needs'):
        check_operators(neck)
