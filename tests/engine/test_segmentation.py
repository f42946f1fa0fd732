"""Whole segmentation runs on generated and on real images."""

import numpy as np
import pytest
from PIL import Image

from evit_mm.engine import test, train

test.__test__ = False  # not a test, in spite of its name

NUM_CLASSES = 150
TRAINING = {
    'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'train_dataloader.batch_size': 2,
    'default_hooks.logger.interval': 1, 'default_hooks.checkpoint.interval': 2,
    'default_hooks.checkpoint.max_keep_ckpts': -1}
NO_DROPOUT = {'model.decode_head.dropout_ratio': 0.0, 'model.auxiliary_head.dropout_ratio': 0.0}
SHAPES = {f'{split}_dataloader.dataset.pipeline.{step}.scale': (96, 96)
          for split, step in (('train', 2), ('val', 1), ('test', 1))} | {
    'model.data_preprocessor.size': (96, 96),
    'model.decode_head.channels': 64, 'model.auxiliary_head.channels': 64}
CROPS_OF_64 = {
    'train_dataloader.dataset.pipeline.2.scale': (256, 64),
    'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
    'model.data_preprocessor.size': (64, 64),
    'val_dataloader.dataset.pipeline.1.scale': (256, 64),
    'test_dataloader.dataset.pipeline.1.scale': (256, 64)}
CONFIG = 'upernet_evit_m0_shapes'

# mmengine's, of the second run in one process.
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of visualizer')


def metrics_in_numpy(predictions, truths):
    """Return aAcc, mIoU and mAcc from files of class ids, 0 for pixels that do not count."""
    intersection, predicted_area, true_area = np.zeros((3, NUM_CLASSES + 1))
    for prediction, truth in zip(predictions, truths, strict=True):
        prediction, truth = (np.asarray(Image.open(path)) for path in (prediction, truth))
        assert prediction.shape == truth.shape and prediction.min() > 0
        for k in range(1, NUM_CLASSES + 1):
            intersection[k] += np.sum((prediction == k) & (truth == k))
            predicted_area[k] += np.sum((prediction == k) & (truth > 0))
            true_area[k] += np.sum(truth == k)
    union = predicted_area + true_area - intersection
    return dict(aAcc=100 * intersection.sum() / true_area.sum(),
                mIoU=100 * np.mean(intersection[union > 0] / union[union > 0]),
                mAcc=100 * np.mean(intersection[true_area > 0] / true_area[true_area > 0]))


def test_trains_resumes_and_tests(loaders, scalars, scenes, tmp_path, monkeypatch):
    """A run is trained, stopped, resumed and tested; the metrics equal those of numpy."""
    monkeypatch.chdir(tmp_path)
    # No flips and no dropout: a resumed run draws new random numbers for them.
    options = {**loaders, **TRAINING, **NO_DROPOUT, **SHAPES, 'train_cfg.max_iters': 4,
               'train_dataloader.dataset.pipeline.3.prob': 0.0}
    train(CONFIG, data_root=scenes, work_dir='run', seed=3, cfg_options=options)
    expected = scalars(tmp_path / 'run')
    assert [entry['step'] for entry in expected] == [1, 2, 3, 4]

    train(CONFIG, data_root=scenes, work_dir='again', resume='run/iter_2.pth', cfg_options=options)
    steps = scalars(tmp_path / 'again')
    assert [entry['step'] for entry in steps] == [3, 4]
    for a, b in zip(expected[2:], steps, strict=True):  # the images it would have seen
        assert b['loss'] == pytest.approx(a['loss'], rel=1e-4) and b['lr'] == a['lr']

    metrics = test(CONFIG, 'run/iter_4.pth', data_root=scenes, work_dir='tested',
                   out='predictions', show_dir='pictures', cfg_options=options)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4
    predictions = sorted((tmp_path / 'predictions').glob('*.png'))
    truths = sorted((scenes / 'annotations' / 'validation').glob('*.png'))
    assert [path.name for path in predictions] == [path.name for path in truths]
    assert metrics == pytest.approx(metrics_in_numpy(predictions, truths), abs=1e-6)

    augmented = test(CONFIG, 'run/iter_4.pth', data_root=scenes, tta=True, cfg_options=options)
    assert set(augmented) == set(metrics) and 0 <= augmented['mIoU'] <= 100


@pytest.mark.parametrize('head,arch', [('upernet', 'm0'),
                                       pytest.param('semantic_fpn', 'm0', marks=pytest.mark.slow),
                                       pytest.param('upernet', 'm4', marks=pytest.mark.slow),
                                       pytest.param('semantic_fpn', 'm4', marks=pytest.mark.slow)])
def test_real_images(head, arch, loaders, scalars, ade_mini, tmp_path):
    config = f'{head}_evit_{arch}_ade20k'
    options = {**loaders, **TRAINING, **CROPS_OF_64}
    common = dict(data_root=ade_mini, work_dir=tmp_path / 'run')
    train(config, from_scratch=True, cfg_options=options, **common)
    losses = [entry['loss'] for entry in scalars(tmp_path / 'run')]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    train(config, resume=True, cfg_options={**options, 'train_cfg.max_iters': 4}, **common)
    assert [entry['step'] for entry in scalars(tmp_path / 'run')] == [3, 4]
    metrics = test(config, tmp_path / 'run' / 'iter_4.pth', fast=True,
                   show_dir=tmp_path / 'pictures', cfg_options=options, **common)
    assert set(metrics) == {'aAcc', 'mIoU', 'mAcc'}
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 2


@pytest.mark.slow
def test_two_processes_take_turns_over_the_data(script, scalars, repository, loaders, scenes,
                                                tmp_path):
    """Two processes with two images each see what one sees with four."""
    options = {**loaders, **TRAINING, **NO_DROPOUT, **SHAPES, 'train_cfg.val_interval': 10,
               'train_dataloader.dataset.pipeline.3.prob': 0.0, 'model.backbone.norm_eval': True}
    options |= {f'model.{head}.norm_cfg.{key}': value for head in ('decode_head', 'auxiliary_head')
                for key, value in (('type', 'GN'), ('num_groups', 8))}  # independent of the batch
    train(CONFIG, data_root=scenes, work_dir=tmp_path / 'one', seed=5,
          cfg_options={**options, 'train_dataloader.batch_size': 4})
    two = script(repository / 'tools' / 'dist_train.sh',
                 repository / 'configs' / f'{CONFIG}.py', 2, '--data-root', scenes,
                 '--work-dir', 'two', '--seed', 5, options, cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    one_process, two_processes = scalars(tmp_path / 'one'), scalars(tmp_path / 'two')
    assert len(one_process) == len(two_processes) == 2
    for a, b in zip(one_process, two_processes, strict=True):
        for name in ('loss', 'decode.loss_ce', 'aux.loss_ce', 'grad_norm'):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
