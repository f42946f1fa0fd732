"""A light detector trained, resumed, tested, exported and used, at a small scale."""

import pytest
import torch
from random_models import SMALLEST
from small_runs import LOADERS, fresh_registries

from evit_mm.deployment.export import export
from evit_mm.engine import test, train
from evit_mm.predict import load_model
from evit_runtime import load_model as load_exported

test.__test__ = False  # not a test, in spite of its name

pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of visualizer')

SIZE = 96
OPTIONS = {
    **LOADERS, 'model.backbone.arch': SMALLEST | {'_delete_': True},
    'model.backbone.init_cfg': None,
    'model.neck.in_channels': [8, 16, 24, 32], 'model.neck.out_channels': 16,
    'model.bbox_head.in_channels': 16, 'model.bbox_head.feat_channels': 16,
    # A model that has hardly learnt predicts nothing above the usual threshold.
    'model.test_cfg.score_thr': 0.0, 'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1}


@pytest.fixture(scope='module')
def run(shapes, tmp_path_factory):
    """Two epochs on eight images, the last one with neither mosaic nor mixup."""
    def start(name, **arguments):
        with fresh_registries():
            return train('evit_det_s_coco', work_dir=tmp_path_factory.mktemp(name),
                         train_ann=shapes / 'annotations' / 'instances_train2017.json',
                         val_ann=shapes / 'annotations' / 'instances_val2017.json',
                         images=shapes / 'train2017', val_images=shapes / 'val2017', epochs=2,
                         image_size=SIZE, seed=0, cfg_options=OPTIONS, **arguments)

    return start


@pytest.fixture(scope='module')
def trained(run):
    return run('light')


def test_training_and_its_end(trained, scalars):
    steps = scalars(trained)
    assert len(steps) == 8 and all(0 < step['loss'] < 10 for step in steps)
    checkpoint = torch.load(trained / 'epoch_2.pth', weights_only=False)
    assert 'ema_state_dict' in checkpoint
    log, = trained.glob('*/*.log')
    assert 'Switch pipeline now' in log.read_text()


def test_resuming(trained, run, scalars):
    resumed = scalars(run('resumed', resume=trained / 'epoch_1.pth'))
    assert [entry['step'] for entry in resumed] == [5, 6, 7, 8]
    assert [entry['lr'] for entry in resumed] == [entry['lr'] for entry in scalars(trained)[4:]]


def test_testing_and_predicting(trained, shapes):
    config, = trained.glob('evit_det_s_coco.py')
    metrics = test(config, trained / 'epoch_2.pth')
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    model = load_model(config, trained / 'epoch_2.pth')
    result, = model(sorted((shapes / 'val2017').iterdir())[0], score_threshold=0.0)
    assert len(result.boxes) > 0 and set(result.labels) <= set(range(4))


@pytest.mark.slow
def test_exporting(trained, shapes, tmp_path):
    config, = trained.glob('evit_det_s_coco.py')
    path = export(config, trained / 'epoch_2.pth', out=tmp_path / 'light.onnx')
    images = sorted((shapes / 'val2017').iterdir())
    exported, model = load_exported(path), load_model(config, trained / 'epoch_2.pth')
    for one, other in zip(exported(images, score_threshold=0.0),
                          model(images, score_threshold=0.0), strict=True):
        assert len(one.boxes) == len(other.boxes) > 0
