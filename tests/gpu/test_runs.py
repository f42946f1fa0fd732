"""Whole runs on the device: training, resuming, testing, and a process group."""

import os
import subprocess
import sys

import pytest
import torch
from mmdet.apis import inference_detector
from random_models import SMALLEST
from small_runs import DETECTION, read_scalars

from evit_mm.engine import test, train
from evit_mm.predict import load_model

test.__test__ = False  # not a test, in spite of its name

# mmengine's, of the second run in one process.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings('ignore:.*instance named of visualizer')]


@pytest.fixture(scope='module')
def config_file(request):
    return request.config.rootpath / 'configs' / 'retinanet_evit_m0_shapes.py'


@pytest.fixture(scope='module')
def trained(config_file, shapes, tmp_path_factory):
    """A training of two epochs."""
    work_dir = tmp_path_factory.mktemp('trained')
    return train(config_file, data_root=shapes, work_dir=work_dir, seed=3, cfg_options=DETECTION)


def test_a_training(trained, device):
    steps = read_scalars(trained)
    assert [entry['step'] for entry in steps] == list(range(1, 9))
    assert all(0 < entry['loss'] < 10 for entry in steps)
    assert ('memory' in steps[0]) is (device.type == 'cuda')
    if device.type == 'cuda':
        assert all(entry['memory'] > 0 for entry in steps)


def test_resuming(trained, config_file, shapes, tmp_path):
    """The rest of the run has the losses of the uninterrupted one; CUDA adds in any order."""
    resumed = train(config_file, data_root=shapes, work_dir=tmp_path, seed=3, cfg_options=DETECTION,
                    resume=trained / 'epoch_1.pth')
    whole, rest = read_scalars(trained)[4:], read_scalars(resumed)
    assert [entry['step'] for entry in rest] == [5, 6, 7, 8]
    for a, b in zip(whole, rest, strict=True):
        assert b['loss'] == pytest.approx(a['loss'], rel=0.02) and b['lr'] == a['lr']


@pytest.mark.parametrize('options', [
    dict(bf16=True), dict(amp=True), dict(channels_last=True)], ids=str)
def test_other_trainings(options, trained, config_file, shapes, tmp_path, device):
    if 'amp' in options and device.type != 'cuda':
        pytest.skip('--amp needs CUDA')
    work_dir = train(config_file, data_root=shapes, work_dir=tmp_path, seed=3, **options,
                     cfg_options=DETECTION | {'train_cfg.max_epochs': 1})
    for a, b in zip(read_scalars(work_dir), read_scalars(trained), strict=False):
        # With float16, steps whose gradients overflow are left out while the scale is found.
        assert a['loss'] == pytest.approx(b['loss'], rel=0.2)


def test_a_compiled_training(config_file, shapes, tmp_path, device):
    losses = []
    for compile in (False, True):
        small = {'model.backbone.arch': dict(SMALLEST, _delete_=True),
                 'model.neck.in_channels': [16, 24, 32]}
        work_dir = train(config_file, data_root=shapes, work_dir=tmp_path / str(compile), seed=3,
                         compile=compile,
                         cfg_options=DETECTION | small | {'train_cfg.max_epochs': 1})
        losses.append([entry['loss'] for entry in read_scalars(work_dir)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_testing(trained, config_file, shapes, tmp_path):
    options = dict(data_root=shapes, work_dir=tmp_path, cfg_options=DETECTION)
    checkpoint = trained / 'epoch_2.pth'
    metrics = test(config_file, checkpoint, **options)
    assert all(0 <= metrics[f'coco/bbox_mAP{kind}'] <= 1 for kind in ('', '_50', '_75'))
    assert test(config_file, checkpoint, fast=True, **options) == pytest.approx(metrics, abs=1e-2)
    assert set(test(config_file, checkpoint, fast=True, bf16=True, **options)) == set(metrics)


def test_prediction(trained, config_file, shapes, device):
    """A checkpoint of the device loads on the CPU, and predicts the same there."""
    pictures = sorted((shapes / 'val2017').glob('*.jpg'))
    results = []
    for place in (device, 'cpu'):
        model = load_model(config_file, trained / 'epoch_2.pth', device=place)
        model.module.test_cfg.score_thr = 0.0
        assert next(model.module.parameters()).device.type == torch.device(place).type
        results.append(model(pictures, score_threshold=0, batch_size=2))
    for one, other in zip(*results, strict=True):
        assert len(one) > 50
        assert one.scores == pytest.approx(other.scores, rel=1e-2, abs=1e-3)
        detected = inference_detector(model.module, one.source).pred_instances
        assert other.scores == pytest.approx(detected.scores.numpy())


def test_a_process_group(trained, config_file, shapes, tmp_path, device):
    """One process through torchrun: NCCL on CUDA, else gloo."""
    options = DETECTION | {'train_cfg.max_epochs': 1}
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '1',
         '-m', 'evit_mm', 'train', config_file, '--data-root', shapes, '--work-dir', 'run',
         '--seed', '3', '--launcher', 'pytorch', '--cfg-options',
         *(f'{key}={value}'.replace(' ', '') for key, value in options.items())],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'NCCL_DEBUG': 'VERSION'})
    assert done.returncode == 0, done.stderr
    steps = read_scalars(tmp_path / 'run')
    for a, b in zip(steps, read_scalars(trained)[:4], strict=True):
        assert a['loss'] == pytest.approx(b['loss'], rel=0.05)
    printed = done.stdout + done.stderr
    assert 'destroy_process_group' not in printed, printed  # NCCL warns if nobody calls it
    assert ('NCCL version' in printed) is (device.type == 'cuda'), printed
