"""NanoDet-Plus-m as it is rebuilt has the published size and cost."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.deployment.export.build import build_module


@pytest.fixture(scope='module')
def model(request):
    config = Config.fromfile(request.path.with_name('nanodet_plus_m.py'))
    init_default_scope('mmdet')
    return MODELS.build(config.model).eval()


def test_size_and_cost(model):
    """Published: 1.17 M parameters, and 1.52 G operations at 416x416, two for a multiply-add."""
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(
        1.17, rel=0.03)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.bbox_head(model.extract_feat(torch.zeros(1, 3, 416, 416)))
    assert counter.get_total_flops() / 1e9 == pytest.approx(1.52, abs=0.01)


def test_it_can_be_exported(model):
    boxes, scores, labels = build_module(model, any_size=False)(
        torch.zeros((1, 64, 96, 3), dtype=torch.uint8), torch.tensor([[64, 96]]))
    assert boxes.shape == (1, 100, 4) and scores.shape == labels.shape == (1, 100)
