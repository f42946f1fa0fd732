"""Thousands of predictions take no more memory than the first ones."""

import resource

import numpy as np
import pytest
import torch
from small_models import small_config, small_model

from evit_mm.deployment.export import export
from evit_runtime import load_model

pytestmark = pytest.mark.faults

COUNT, WARM_UP, STEP = 2000, 500, 50


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Return a function that gives a small detector, as each backend runs it."""
    folder = tmp_path_factory.mktemp('soak')
    in_torch = small_model('retinanet')
    path = folder / 'model.onnx'

    def load(backend):
        if backend == 'torch':
            return in_torch
        if not path.exists():
            small_config('retinanet').dump(folder / 'config.py')
            torch.save({'state_dict': in_torch.module.state_dict()}, folder / 'a.pth')
            export(folder / 'config.py', folder / 'a.pth', out=path, verify=False)
        return load_model(path, backend, threads=1)

    return load


def megabytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


@pytest.mark.parametrize('backend', ['torch', 'onnxruntime', 'openvino'])
def test_predictions_take_no_more_memory(backend, models, record_property):
    record_property('predictions without more memory', COUNT)
    model = models(backend)
    numbers = np.random.default_rng(0)
    noise = numbers.integers(0, 255, (200, 200, 3), np.uint8)
    memory, found = [], 0
    for number in range(COUNT):
        height, width = numbers.integers(40, 200, 2)
        [result] = model(noise[:height, :width], score_threshold=0.05)
        assert result.shape == (height, width)
        found += len(result.boxes)
        if number % STEP == 0 and number >= WARM_UP:
            memory.append(megabytes())
    assert found > COUNT  # it does not only look
    slope = np.polyfit(np.arange(len(memory)) * STEP, memory, 1)[0]
    print(f'{backend}: {slope * 1000:.2f} MB per 1,000 predictions')
    assert slope * (COUNT - WARM_UP) < 10
