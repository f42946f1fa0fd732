"""The comparison of the light segmentors' heads: each learns, and the page has its figures."""

import json
from collections.abc import Iterator

import pytest
import torch
from light.segmentors import HEADS, PEERS, RESULTS, cost, model_config, table
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.mark.slow
@pytest.mark.parametrize('name', [*HEADS, *PEERS])
def test_every_head_learns(name):
    model = MODELS.build(model_config(name))
    model.init_weights()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 128, 128))),
                             gt_edge_map=PixelData(data=torch.randint(0, 2, (1, 128, 128))))
               for _ in range(2)]
    losses = model.train()(torch.randn(2, 3, 128, 128), samples, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_cost_of_the_configured_head():
    assert cost(model_config('as configured')) == dict(parameters=2.21, multiply_adds=513.9)


def test_the_page_has_the_recorded_figures(repository):
    results = json.loads(RESULTS.read_text())
    assert results.keys() <= {*HEADS, *PEERS}
    assert table(results) in (repository / 'docs' / 'light.md').read_text()


def test_a_table():
    results = {'a': dict(parameters=2.0, multiply_adds=500.0, seeds={'0': 80.0, '1': 90.0})}
    cells = [cell.strip() for cell in table(results).splitlines()[2].split('|')]
    assert cells == ['', 'a', '2.00 M', '0.50 G', '85.0 (80.0 to 90.0)', '']
