"""The ablation of the light detectors: every variant learns, predicts and has the cost it says."""

import copy
import json

import pytest
import torch
from families.batches import detection_batch
from light.curves import (
    RESULTS,
    cost,
    curve,
    dataset,
    draw,
    recomputed_statistics,
    table,
)
from light.variants import PEERS, SIZES, VARIANTS, variant_config
from mmdet.utils import register_all_modules
from mmengine.registry import MODELS

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')


@pytest.fixture(autouse=True)
def _registered() -> None:
    register_all_modules()


@pytest.mark.slow
@pytest.mark.parametrize('name', [*VARIANTS, *SIZES, *PEERS])
def test_every_variant_learns_and_predicts(name):
    model = MODELS.build(variant_config(name))
    model.init_weights()
    batch = detection_batch(80, 128, 128, with_masks=False)
    losses = model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(batch, training=False), mode='predict')
    assert len(results) == 2 and hasattr(results[0].pred_instances, 'scores')


def test_necks_of_the_variants():
    """All but the configured one concatenate maps, unless they have another neck."""
    merges = {name: variant_config(name).neck.get('merge') for name in VARIANTS}
    assert merges.pop('as configured') == 'sum' and merges.pop('neck: CSP-PAN') is None
    assert set(merges.values()) == {'concat'}


def test_cost_of_a_variant():
    with pytest.raises(ValueError, match='none of the variants'):
        cost('as confgured', 320)
    assert cost('as configured', 320) == dict(side=320, parameters=2.338, multiply_adds=238.9)


@pytest.mark.slow
def test_a_curve(coco_mini):
    points = curve('plain distances, soft labels', coco_mini, distinct=4, images=16, seed=0)
    assert [point['images'] for point in points] == [4, 8, 16]
    assert all(point['loss'] > 0 and 0 <= point['ap_recomputed'] <= 1 for point in points)


@pytest.mark.parametrize('name', ['as configured', *SIZES])
def test_the_detectors_are_what_the_page_says(name):
    model = MODELS.build(variant_config(name))
    head = model.bbox_head
    assert type(head).__name__ == 'RTMDetSepBNHead'
    assert head.use_depthwise and head.exp_on_reg and not head.with_objectness
    assert type(head.assigner).__name__ == 'TaskAlignedPointAssigner'
    assert model.neck.merge == 'sum'
    assert model.neck.top_down_convs[0].depthwise.conv.kernel_size == (5, 5)
    assert head.prior_generator.strides == [(8, 8), (16, 16), (32, 32), (64, 64)]


def test_recomputed_statistics_are_those_of_the_images(coco_mini):
    model = MODELS.build(variant_config('as configured'))
    images = dataset(coco_mini, 4, side=320)
    norm = model.backbone.stem[0].norm
    before = copy.deepcopy(norm.state_dict())
    with recomputed_statistics(model, images):
        pixels = model.data_preprocessor(
            dict(inputs=[images[number]['inputs'] for number in range(4)]), training=False)
        with torch.no_grad():
            expected = model.backbone.stem[0].conv(pixels['inputs']).mean((0, 2, 3))
        torch.testing.assert_close(norm.running_mean, expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_the_page_has_the_recorded_figures(repository):
    page = (repository / 'docs' / 'light.md').read_text()
    files = {*RESULTS.parent.glob('light-*.json')} - {RESULTS.parent / 'light-scenes.json'}
    assert RESULTS in files
    for file in files:
        results = json.loads(file.read_text())
        assert results.keys() <= {*VARIANTS, *SIZES, *PEERS}
        assert table(results) in page, file
        for name in {'as configured', *SIZES} & results.keys():
            assert results[name] == results[name] | cost(name, results[name]['side']), file


def test_a_table_and_a_figure(tmp_path):
    point = dict(images=4, loss=1.25, ap=0.1, ap50=0.2, ap_small=0.0, ap_recomputed=0.1)
    cost = dict(side=320, parameters=2.0, multiply_adds=250.0)
    results = {'a': cost | dict(seeds={'0': [point]}), 'b': cost | dict(seeds={
        '0': [point], '1': [point | dict(ap=0.3, ap50=0.4)]})}
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in table(results).splitlines()[2:]]
    assert rows == [
        ['a', '320', '2.00 M', '0.25 G', '10.0', '20.0', '0.0', '10.0'],
        ['b', '320', '2.00 M', '0.25 G', '20.0 (10.0 to 30.0)', '30.0 (20.0 to 40.0)',
         '0.0 (0.0 to 0.0)', '10.0 (10.0 to 10.0)']]
    draw(results, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 1000
