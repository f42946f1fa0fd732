"""The published detectors run as they are, and no entry point runs code from a checkpoint."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file

from evit_mm.checkpoint.convert import convert
from evit_mm.cli import convert_weights_parser, run_tool, test_parser, train_parser
from evit_mm.engine import preflight, test, train
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT

test.__test__ = test_parser.__test__ = False  # not tests, in spite of their names

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
                                                       repository, tmp_path, capfd):
    """Recorded weights find nothing true; that they are run is what counts here."""
    state = published(golden, detector)
    path = tmp_path / f'published{suffix}'
    if suffix == '.pth':
        torch.save({'state_dict': state, 'meta': {}}, path)
    else:
        save_file(state, path)
    options = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False',
               'test_dataloader.dataset.pipeline.1.scale=(128,128)']
    options += ['model.test_cfg.score_thr=0.0', 'model.test_cfg.max_per_img=5'] \
        if detector == 'retinanet' else \
        ['model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=5',
         'model.test_cfg.rpn.max_per_img=20']
    status = run_tool(test_parser(), test, [
        str(repository / 'configs' / f'{detector}_evit_m4_coco.py'), str(path), '--data-root',
        str(coco_mini), '--work-dir', str(tmp_path / 'run'), '--out', str(tmp_path / 'found.pkl'),
        '--cfg-options', *options])
    printed = capfd.readouterr()
    assert status == 0, printed.err
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95' in printed.out
    assert 'Microsoft layout: 686 tensors loaded (0 of them resized), 6 dropped, 0 missing' in \
        printed.out + printed.err
    assert (tmp_path / 'found.pkl').stat().st_size > 1000


def test_hostile_files_are_refused_everywhere(config_file, shapes, tmp_path, monkeypatch, capsys):
    """A pickle that would create a file: it is not there afterwards."""
    from mmdet.apis import DetInferencer, init_detector

    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / 'owned'), 'w')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # what stock answers recommend
    state = EfficientViT('m0').state_dict()
    torch.save({'model': state, 'args': Hostile()}, 'hostile.pth')
    torch.save({'model': state, 'args': Hostile()}, 'hostile.safetensors')  # of another name
    data = ['--data-root', str(shapes)]
    for name in ('hostile.pth', 'hostile.safetensors'):
        (tmp_path / 'pretrained.py').write_text(
            f'_base_ = {str(config_file)!r}\n'
            'model = dict(backbone=dict(init_cfg=dict('
            f"_delete_=True, type='Pretrained', checkpoint={name!r})))\n")
        for parser, action, arguments in (
                (test_parser, test, [str(config_file), name, *data]),
                (train_parser, train, [str(config_file), *data, '--resume', name]),
                (train_parser, train, [str(config_file), *data, '--cfg-options',
                                       f'load_from={name}']),
                (train_parser, train, ['pretrained.py', *data]),
                (convert_weights_parser, convert, [name, '--inspect']),
                (convert_weights_parser, convert, [name, 'out'])):
            assert run_tool(parser(), action, arguments) == 2
            errors = capsys.readouterr().err
            # Under the name of a safetensors file it is not even read as a pickle.
            assert ('hostile.pth is refused' in errors or
                    'hostile.safetensors can\'t be read' in errors) and 'Traceback' not in errors
        for attempt in (lambda name=name: init_detector(str(config_file), name, device='cpu'),
                        lambda name=name: DetInferencer(str(config_file), name, device='cpu'),
                        lambda name=name: DetInferencer(weights=name, device='cpu')):
            with pytest.raises(CheckpointError, match='hostile'):
                attempt()
    assert not (tmp_path / 'owned').exists() and not (tmp_path / 'out.safetensors').exists()
