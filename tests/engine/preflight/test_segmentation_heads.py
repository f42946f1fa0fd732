"""Heads whose losses can't fall are refused."""

import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from evit_mm.engine import preflight
from evit_mm.errors import ConfigError

CROSS_ENTROPY = dict(type='CrossEntropyLoss')
SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)


def model(**heads):
    init_default_scope('mmseg')
    built = nn.Module()
    for name, options in heads.items():
        built.add_module(name, MODELS.build(dict(
            type='FCNHead', in_channels=4, channels=4, num_convs=1, **options)))
    return built


@pytest.mark.parametrize('options', [
    dict(num_classes=1), dict(num_classes=1, loss_decode=[CROSS_ENTROPY, dict(type='TverskyLoss')]),
    dict(num_classes=2, out_channels=1), dict(num_classes=1, ignore_index=0)])
@pytest.mark.parametrize('name', ['decode_head', 'auxiliary_head'])
def test_softmax_over_one_channel(name, options):
    with pytest.raises(ConfigError) as caught:
        preflight.check_segmentation_heads(model(**{name: options}))
    text = str(caught.value)
    assert f'model.{name} has one output channel' in text and '\n' not in text
    assert 'use_sigmoid=True' in text and 'num_classes=2' in text


@pytest.mark.parametrize('options', [
    dict(num_classes=2), dict(num_classes=2, out_channels=1, loss_decode=SIGMOID),
    dict(num_classes=2, out_channels=1, loss_decode=[CROSS_ENTROPY, SIGMOID]),
    dict(num_classes=3, loss_decode=[CROSS_ENTROPY, dict(type='DiceLoss')])])
def test_losses_that_can_fall(options):
    built = model(decode_head=options, auxiliary_head=options)
    preflight.check_segmentation_heads(built)
    assert all(parameter.grad is None for parameter in built.parameters())


def test_models_of_other_kinds():
    preflight.check_segmentation_heads(nn.Sequential(nn.Linear(2, 2)))


def test_heads_that_ignore_different_labels(monkeypatch):
    lines = []
    monkeypatch.setattr(preflight.segmentation_heads, 'print_log',
                        lambda text, **_: lines.append(text))
    heads = dict(decode_head=dict(num_classes=3), auxiliary_head=dict(num_classes=3))
    preflight.check_segmentation_heads(model(**heads))
    assert not lines
    heads['auxiliary_head']['ignore_index'] = 0
    preflight.check_segmentation_heads(model(**heads))
    assert len(lines) == 1 and 'model.auxiliary_head.ignore_index=0' in lines[0]
