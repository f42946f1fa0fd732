"""The checks in runners of other tools."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import evit_mm
from evit_mm.compat import mmcv_ops
from evit_mm.engine import config as configure
from evit_mm.engine import preflight, train
from evit_mm.engine.hooks import PreflightHook
from evit_mm.errors import CheckpointError, ConfigError, UserError

TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['evit_mm.detection', 'evit_mm.engine.hooks'])
custom_hooks = [dict(type='PreflightHook')]
"""
# mmengine's, of the second run in one process.
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of visualizer')


@pytest.fixture
def own_config(config_file, detection, shapes, tmp_path):
    """A config with the hook, written to a file, and changed by options."""
    def write(**options):
        (tmp_path / 'own.py').write_text(CONFIG.format(base=str(config_file)))
        config = configure.load_config(tmp_path / 'own.py', {**detection, **options})
        configure.set_data_root(config, shapes)
        config.work_dir = str(tmp_path / 'run')
        return config

    return write


def mmdet_tool(script, name, *arguments, cwd):
    """Run one of MMDetection's own scripts, with this package on its path."""
    start = 'import evit_mm, runpy, sys; del sys.argv[0]; ' \
            'runpy.run_path(sys.argv[0], run_name="__main__")'
    return script(sys.executable, '-c', start, TOOLS / name, *arguments, cwd=cwd,
                  PYTHONPATH=str(Path(evit_mm.__file__).parents[1]))


@pytest.mark.slow
def test_mmdetections_own_tools(script, own_config, trained, tmp_path):
    """Their checks come before anything is trained or tested."""
    own_config(**{'train_cfg.max_epochs': 1}).dump(tmp_path / 'good.py')
    bad = own_config(**{'model.bbox_head.num_classes': 80})
    bad.pop('custom_imports')
    bad.custom_hooks = [dict(type='evit_mm.engine.hooks.PreflightHook')]
    bad.model.bbox_head.type = 'RetinaHead'
    bad.dump(tmp_path / 'bad.py')
    good = mmdet_tool(script, 'test.py', 'good.py', trained.checkpoint, cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert 'Loads checkpoint by memory backend' in good.stdout
    assert 'coco/bbox_mAP:' in good.stdout
    bad = mmdet_tool(script, 'train.py', 'bad.py', cwd=tmp_path)
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1] == (
        'evit_mm.errors.ConfigError: bbox_head predicts 80 classes, but the train dataset has 4: '
        'set model.bbox_head.num_classes=4')
    assert 'Epoch(train)' not in bad.stdout


def start(config, action='train'):
    """Start a stock runner, whose loop must not be reached."""
    def run(*_):
        raise AssertionError('the loop has started')

    with pytest.MonkeyPatch.context() as patch:
        for loop in ('EpochBasedTrainLoop', 'TestLoop'):
            patch.setattr(f'mmengine.runner.loops.{loop}.run', run)
        getattr(Runner.from_cfg(config), action)()


def test_mistakes_before_a_stock_training(own_config, shapes, trained, tmp_path):
    with pytest.raises(AssertionError, match='the loop has started'):
        start(own_config())
    config = own_config()
    config.val_dataloader.dataset.data_prefix.img = 'nowhere/'
    with pytest.raises(UserError, match=f'no such folder: {shapes}/nowhere'):
        start(config)
    config = own_config()
    for name in ('train', 'val'):
        config[f'{name}_dataloader'].dataset.metainfo.classes = ('circle', 'square')
    with pytest.raises(ConfigError, match='does not have: triangle, star'):
        start(config)
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(1)}}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='is not a checkpoint of this config'):
        start(own_config(load_from=str(tmp_path / 'other.pth')))
    with pytest.raises(CheckpointError, match='resumed from.*weights only'):
        weights = torch.load(trained.checkpoint, weights_only=False)['state_dict']
        torch.save({'state_dict': weights}, tmp_path / 'weights.pth')
        start(own_config(load_from=str(tmp_path / 'weights.pth'), resume=True))


def test_a_missing_operator_before_a_stock_training(own_config, monkeypatch):
    extension = importlib.import_module('mmcv._ext')
    if not mmcv_ops.install():
        pytest.skip('a compiled mmcv lacks nothing')
    monkeypatch.delattr(extension, 'sigmoid_focal_loss_forward')
    with pytest.raises(UserError, match=r"mmcv op 'sigmoid_focal_loss_forward' is not available, "
                                        r'which bbox_head\.loss_cls \(FocalLoss\) needs: '):
        start(own_config())


def test_mistakes_before_a_stock_test(own_config, trained, tmp_path):
    config = own_config(load_from=trained.checkpoint)
    with pytest.raises(AssertionError, match='the loop has started'):
        start(config, 'test')
    config.train_dataloader.dataset.data_root = 'nowhere'  # is not used
    with pytest.raises(AssertionError, match='the loop has started'):
        start(config, 'test')
    config.model.bbox_head.num_classes = 7
    with pytest.raises(CheckpointError, match='of another shape'):
        start(config, 'test')
    with pytest.raises(ConfigError, match='predicts 7 classes, but the test dataset has 4'):
        start(own_config(**{'model.bbox_head.num_classes': 7}), 'test')


def test_label_maps_in_a_stock_training(segmentor, ade):
    """Whose config still has MMSegmentation's own loader."""
    init_default_scope('mmseg')
    segmentor.work_dir = str(ade / 'run')
    segmentor.custom_hooks = [dict(type='PreflightHook')]
    for head in ('decode_head', 'auxiliary_head'):
        segmentor.model[head].norm_cfg.type = 'BN'
    next((ade / 'annotations' / 'validation').glob('*3.png')).write_bytes(b'')
    with pytest.raises(UserError, match='1 of the 4 label maps of the val dataset are missing'):
        Runner.from_cfg(segmentor).train()
    segmentor.train_dataloader.batch_size = 1
    for name in ('dataloader', 'evaluator', 'cfg'):
        segmentor.pop(f'val_{name}')
    with pytest.raises(ConfigError, match='from a batch of one image'):
        Runner.from_cfg(segmentor).train()


def test_images_that_are_evaluated_without_a_prediction(own_config, shapes, capsys):
    """By MMDetection's metric, which evit_mm.test replaces."""
    config = own_config()
    config.test_dataloader.dataset.indices = 1
    truth = json.loads((shapes / config.test_dataloader.dataset.ann_file).read_text())
    first = min(image['id'] for image in truth['images'])
    count = sum(entry['image_id'] != first and not entry['iscrowd']
                for entry in truth['annotations'])
    warning = f'CocoMetric is going to count {count} objects of 3 images as missed'
    with pytest.raises(AssertionError, match='the loop has started'):
        start(config, 'test')
    [line] = [line for line in capsys.readouterr().out.splitlines() if 'as missed' in line]
    assert warning in line
    config.test_evaluator.type = 'evit_mm.detection.PerClassCocoMetric'
    with pytest.raises(AssertionError, match='the loop has started'):
        start(config, 'test')
    del config.test_dataloader.dataset['indices']
    config.test_evaluator.type = 'CocoMetric'
    with pytest.raises(AssertionError, match='the loop has started'):
        start(config, 'test')
    assert 'as missed' not in capsys.readouterr().out


def test_our_own_training_checks_once(own_config, monkeypatch):
    """Though its config names the hook, too."""
    calls = []
    for name in ('check_files', 'built_dataset', 'check_norms'):
        check = getattr(preflight, name)
        monkeypatch.setattr(preflight, name, lambda *arguments, name=name, check=check, **options:
                            calls.append(name) or check(*arguments, **options))
    hooks = []
    monkeypatch.setattr(Runner, 'train', lambda runner: (
        hooks.extend(runner.hooks), runner.call_hook('before_run')))
    config = own_config()
    train(config)
    assert sum(isinstance(hook, PreflightHook) for hook in hooks) == 1
    assert calls == ['check_files'] * 2 + ['built_dataset'] * 2 + ['check_norms']
    assert [hook.type for hook in config.custom_hooks] == ['PreflightHook']


def test_a_runner_without_a_config(shapes):
    """It was built from objects: only these can be checked."""
    class Empty:
        cfg, world_size, model = Config(), 1, torch.nn.Linear(2, 2)
        _load_from, _resume, _has_loaded, work_dir = None, False, False, str(shapes)
        _train_loop = _val_loop = _test_loop = None

    PreflightHook().before_run(Empty())


def test_weights_that_a_checkpoint_replaces_are_not_fetched(own_config, tmp_path):
    """Fine-tuning works without a network, though the config names weights of the backbone."""
    init_default_scope('mmdet')
    config = own_config()
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='http://127.0.0.1:9/a.pth')
    config.model.bbox_head.num_classes = 7
    checkpoint = str(tmp_path / 'seven.pth')
    torch.save(dict(state_dict=MODELS.build(config.model).state_dict(), meta={}), checkpoint)
    config.model.bbox_head.num_classes = 4
    model = MODELS.build(config.model)
    runner = SimpleNamespace(model=model, _load_from=checkpoint, _resume=False, _has_loaded=False)
    PreflightHook()._check_checkpoint(runner, training=True)
    model.init_weights()
    other = MODELS.build(config.model)
    runner.model, runner._load_from = other, str(tmp_path / 'head.pth')
    torch.save(dict(state_dict={key: value for key, value in other.state_dict().items()
                                if not key.startswith('backbone')}), runner._load_from)
    PreflightHook()._check_checkpoint(runner, training=True)
    with pytest.raises(CheckpointError, match='could not download'):
        other.init_weights()  # the backbone is not in that checkpoint
