"""The published detectors run as they are, and no entry point runs code from a checkpoint."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file

from evit_mm import predict
from evit_mm.engine import preflight, test, train
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT

test.__test__ = False  # not a test, in spite of its name

DETECTORS = ['retinanet', 'mask_rcnn']
# mmengine's, of the second run in one process.
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of visualizer')


def published(golden, detector):
    return {key: torch.from_numpy(np.asarray(value))
            for key, value in golden.official_state(f'{detector}_m4').items()}


@pytest.mark.parametrize('detector', DETECTORS)
def test_published_detectors_fit_our_configs(detector, golden, repository, tmp_path):
    """Nothing missing, nothing unexpected, in every wrapping; mmengine raises if there is."""
    init_default_scope('mmdet')
    config = Config.fromfile(repository / 'configs' / f'{detector}_evit_m4_coco.py')
    model = MODELS.build(config.model)
    state = published(golden, detector)
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'published.pth')
    torch.save({'model': {f'module.{key}': value for key, value in state.items()}},
               tmp_path / 'wrapped.pth')
    save_file(state, tmp_path / 'published.safetensors')
    key, value = 'neck.fpn_convs.0.conv.weight', state['neck.fpn_convs.0.conv.weight']
    for name in ('published.pth', 'wrapped.pth', 'published.safetensors'):
        with torch.no_grad():
            model.state_dict()[key].zero_()
        preflight.check_checkpoint(model, str(tmp_path / name), purpose='test')
        load_checkpoint(model, str(tmp_path / name), strict=True)
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize('detector,suffix', [('retinanet', '.pth'), ('mask_rcnn', '.safetensors')])
def test_published_detectors_are_tested_on_real_images(detector, suffix, golden, coco_mini,
                                                       loaders, tmp_path, capfd):
    """Recorded weights find nothing true, but they predict."""
    state = published(golden, detector)
    path = tmp_path / f'published{suffix}'
    if suffix == '.pth':
        torch.save({'state_dict': state, 'meta': {}}, path)
    else:
        save_file(state, path)
    options = {**loaders, 'test_dataloader.dataset.pipeline.1.scale': (128, 128),
               'test_dataloader.dataset.indices': 6}
    options |= {'model.test_cfg.score_thr': 0.0, 'model.test_cfg.max_per_img': 5} \
        if detector == 'retinanet' else {
            'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 5,
            'model.test_cfg.rpn.max_per_img': 20}
    metrics = test(f'{detector}_evit_m4_coco', path, data_root=coco_mini,
                   work_dir=tmp_path / 'run', out=tmp_path / 'predictions.pkl',
                   cfg_options=options)
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    printed = capfd.readouterr()
    assert 'Microsoft layout: 686 tensors loaded (0 of them resized), 6 dropped, 0 missing' in \
        printed.out + printed.err
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert [len(one['pred_instances']['scores']) for one in predictions] == [5] * 6


def test_hostile_files_are_refused_everywhere(config_file, shapes, tmp_path, monkeypatch,
                                              hostile_pickle):
    """A pickle that would create a file: it does not exist afterwards."""
    from mmdet.apis import DetInferencer, init_detector

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # the usual advice elsewhere
    state = EfficientViT('m0').state_dict()
    torch.save({'model': state, 'args': hostile_pickle}, 'hostile.pth')
    torch.save({'model': state, 'args': hostile_pickle}, 'hostile.safetensors')
    path = str(config_file)

    def attempts(name):
        pretrained = Config.fromfile(path)
        pretrained.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=name)
        return [
            lambda: test(path, name, data_root=shapes),
            lambda: train(path, data_root=shapes, resume=name),
            lambda: train(path, data_root=shapes, cfg_options=dict(load_from=name)),
            lambda: train(pretrained, data_root=shapes),
            lambda: predict.load_model(path, name),
            lambda: init_detector(path, name, device='cpu'),
            lambda: DetInferencer(path, name, device='cpu'),
            lambda: DetInferencer(weights=name, device='cpu')]

    for name in ('hostile.pth', 'hostile.safetensors'):
        for attempt in attempts(name):
            # Under the name of a safetensors file it is not even read as a pickle.
            with pytest.raises(CheckpointError, match='hostile.pth is refused|'
                                                      'hostile.safetensors can.t be read|'
                                                      'DetInferencer needs a config'):
                attempt()
    assert not hostile_pickle.was_run
