"""Whole runs on generated and on real images, and mistakes that end a run before it starts."""

import pickle
import shutil
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

from evit_mm.engine import config as configure
from evit_mm.engine import run, test, train
from evit_mm.engine.hooks.acceleration import Acceleration
from evit_mm.errors import ConfigError
from evit_mm.models import EfficientViT

test.__test__ = False  # not a test, in spite of its name

# mmengine's, of the second run in one process.
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of visualizer')


def test_a_training_by_the_tool(trained, scalars):
    steps = scalars(trained.work_dir)
    assert [entry['step'] for entry in steps] == list(range(1, 9))
    assert all(0 < entry['loss'] < 10 for entry in steps)
    assert sorted(path.name for path in trained.work_dir.glob('*.pth')) == [
        'best_coco_bbox_mAP_epoch_2.pth', 'epoch_1.pth', 'epoch_2.pth']


def test_the_terminal_shows_a_summary_and_the_log_everything(trained):
    printed = trained.printed.splitlines()
    first_step = next(i for i, line in enumerate(printed) if 'Epoch(train) [1][1/4]' in line)
    assert first_step <= 60
    start = '\n'.join(printed[:first_step])
    for row in ('Training retinanet_evit_m0_shapes', f'work dir:   {trained.work_dir}',
                'cpu, 1 thread', '2.5 M parameters',
                'RetinaNet (EfficientViT m0, EfficientViTFPN, SyncedRetinaHead)',
                '8 images of 4 classes, 2 epochs of 4 iterations', '4 images of 4 classes',
                'effective batch size 2 (1 process x 2 images), learning rate 0.001',
                'weights:    random', 'speed-ups:  channels-last'):
        assert row in start, start
    assert 'is for a batch of 8 images, not 2' in start
    log_file, = trained.work_dir.glob('*/*.log')
    log = log_file.read_text()
    for text in ('System environment:', 'Config:', "type='SyncedRetinaHead'", 'paramwise_options',
                 'Hooks will be executed', 'Training retinanet_evit_m0_shapes'):
        assert text in log
    assert 'Config:' not in trained.printed and 'paramwise_options' not in trained.printed
    written, = trained.work_dir.glob('*/vis_data/config.py')
    assert Config.fromfile(written).train_cfg.max_epochs == 2
    assert trained.printed.count('Average Precision') == 6  # after the start, nothing is held back


def test_resuming_continues_as_the_uninterrupted_run(trained, detection, scalars, config_file,
                                                     shapes, tmp_path, capsys):
    work_dir = train(str(config_file), data_root=shapes, work_dir=tmp_path / 'run', seed=3,
                     resume=trained.work_dir / 'epoch_1.pth', cfg_options=detection)
    assert work_dir == tmp_path / 'run'
    whole, resumed = scalars(trained.work_dir)[4:], scalars(work_dir)
    assert [entry['step'] for entry in resumed] == [5, 6, 7, 8]
    for a, b in zip(whole, resumed, strict=True):
        assert b['loss'] == pytest.approx(a['loss'], rel=1e-3) and b['lr'] == a['lr']
    assert 'epoch_1.pth, resumed at iteration 4' in capsys.readouterr().out

    # From the latest checkpoint of the work dir, which is that of the end: no step is left.
    train(str(config_file), data_root=shapes, work_dir=work_dir, resume=True,
          cfg_options=detection)
    assert 'epoch_2.pth, resumed at iteration 8' in capsys.readouterr().out


def test_a_test_stores_draws_and_returns_its_metrics(trained, detection, config_file, shapes,
                                                     tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = dict(data_root=shapes, cfg_options=detection)
    metrics = test(config_file, trained.checkpoint, out='predictions.pkl', show_dir='pictures',
                   **options)
    assert all(0 <= metrics[f'coco/bbox_mAP{kind}'] <= 1 for kind in ('', '_50', '_75'))
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 4
    with (tmp_path / 'predictions.pkl').open('rb') as file:
        predictions = pickle.load(file)
    assert [len(one['pred_instances']['scores']) for one in predictions] == [100] * 4
    assert (tmp_path / 'work_dirs' / config_file.stem).is_dir()
    assert 'Testing retinanet_evit_m0_shapes' in capsys.readouterr().out

    fast = test(config_file, trained.checkpoint, fast=True, out='fast.pkl', **options)
    assert fast == pytest.approx(metrics, abs=1e-3)
    with (tmp_path / 'fast.pkl').open('rb') as file:
        for a, b in zip(predictions, pickle.load(file), strict=True):
            torch.testing.assert_close(b['pred_instances']['scores'],
                                       a['pred_instances']['scores'], atol=1e-4, rtol=1e-3)
    augmented = test(config_file, trained.checkpoint, tta=True, **options)
    assert set(augmented) == set(metrics) and augmented != metrics


def test_a_checkpoint_is_read_once(trained, detection, readings, config_file, shapes, tmp_path):
    options = dict(data_root=shapes, work_dir=tmp_path, cfg_options=detection)
    test(config_file, trained.checkpoint, **options)
    assert readings == [trained.checkpoint]
    train(config_file, resume=trained.checkpoint, **options)
    assert readings == [trained.checkpoint] * 2
    train(config_file, **{**options, 'cfg_options': {
        **detection, 'load_from': trained.checkpoint, 'train_cfg.max_epochs': 1,
        'train_dataloader.dataset.indices': 2}})
    assert readings == [trained.checkpoint] * 3


def test_no_checkpoint_is_kept_when_a_run_fails(trained, detection, config_file, shapes, tmp_path,
                                                monkeypatch):
    """The next reader reads the file, which may have changed."""
    def fail(_):
        raise RuntimeError('before the checkpoint is loaded')

    path = str(tmp_path / 'own.pth')
    shutil.copy(trained.checkpoint, path)
    monkeypatch.setattr(Runner, 'test', fail)
    with pytest.raises(ConfigError, match='before the checkpoint is loaded'):
        test(config_file, path, data_root=shapes, work_dir=tmp_path, cfg_options=detection)
    torch.save({'state_dict': {'other': torch.ones(1)}}, path)
    assert list(CheckpointLoader.load_checkpoint(path)['state_dict']) == ['other']


@pytest.mark.parametrize('action,device,options,expected', [
    (train, 'cpu', {}, dict(channels_last=True)),
    (train, 'cpu', dict(channels_last=False, bf16=True), dict(bf16=True)),
    (train, 'cuda', {}, {}),
    (train, 'cuda', dict(channels_last=True), dict(channels_last=True)),
    (test, 'cpu', {}, {}),
    (test, 'cpu', dict(fast=True, bf16=True), dict(deploy=True, channels_last=True, bf16=True)),
    (test, 'cuda', dict(fast=True), dict(deploy=True, channels_last=True)),
    (test, 'cpu', dict(deploy=True), dict(deploy=True))])
def test_accelerations_of_a_run(action, device, options, expected, trained, detection, config_file,
                                shapes, tmp_path, monkeypatch):
    accelerations = []
    monkeypatch.setattr(run, 'get_device', lambda: device)
    monkeypatch.setattr(run, 'accelerate', lambda *arguments: accelerations.append(arguments[-1]))
    monkeypatch.setattr(Runner, 'train', lambda self: None)
    monkeypatch.setattr(Runner, 'test', lambda self: {})
    arguments = [config_file] if action is train else [config_file, trained.checkpoint]
    action(*arguments, data_root=shapes, work_dir=tmp_path, cfg_options=detection, **options)
    assert accelerations == [Acceleration(**expected)]


@pytest.mark.parametrize('detector,arch', [('retinanet', 'm0'),
                                           pytest.param('mask_rcnn', 'm0', marks=pytest.mark.slow),
                                           pytest.param('retinanet', 'm4', marks=pytest.mark.slow),
                                           pytest.param('mask_rcnn', 'm4', marks=pytest.mark.slow)])
def test_real_images(detector, arch, loaders, scalars, coco_mini, tmp_path):
    """By the name of a packaged config."""
    config = f'{detector}_evit_{arch}_coco'
    options = {**loaders, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 10,
               'train_dataloader.batch_size': 2, 'train_dataloader.dataset.indices': 4,
               'test_dataloader.dataset.indices': 8,
               'default_hooks.logger.interval': 1, 'default_hooks.checkpoint.interval': 1,
               **{f'{split}_dataloader.dataset.pipeline.{step}.scale': (128, 128)
                  for split, step in (('train', 2), ('val', 1), ('test', 1))}}
    options |= {'model.test_cfg.score_thr': 0.0} if detector == 'retinanet' else {
        'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 5,
        'model.test_cfg.rpn.max_per_img': 50}
    common = dict(data_root=coco_mini, work_dir=tmp_path / 'run')
    train(config, from_scratch=True, cfg_options=options, **common)
    losses = [entry['loss'] for entry in scalars(tmp_path / 'run')]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    train(config, resume='auto', bf16=True, cfg_options={**options, 'train_cfg.max_epochs': 2},
          **common)
    assert [entry['step'] for entry in scalars(tmp_path / 'run')] == [3, 4]
    metrics = test(config, tmp_path / 'run' / 'epoch_2.pth', fast=True, bf16=True,
                   cfg_options=options, **common)
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert ('coco/segm_mAP' in metrics) == (detector == 'mask_rcnn')


def test_two_processes_are_one_with_the_doubled_batch(script, scalars, detection, repository,
                                                      flat_config_file, shapes, tmp_path):
    """The same images in the same order, the same losses, step by step; the same metrics."""
    options = {**detection, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 10,
               'train_dataloader.batch_sampler': None,
               # A process of its own would learn BN statistics of its own images.
               'model.backbone.norm_eval': True, 'model.backbone.with_cp': True}
    train(flat_config_file, data_root=shapes, work_dir=tmp_path / 'one', seed=5,
          cfg_options={**options, 'train_dataloader.batch_size': 4})
    tools = repository / 'tools'
    two = script(tools / 'dist_train.sh', flat_config_file, 2, '--data-root', shapes, '--work-dir',
                 'two', '--seed', 5, options, cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert 'effective batch size 4 (2 processes x 2 images)' in two.stdout
    one_process, two_processes = scalars(tmp_path / 'one'), scalars(tmp_path / 'two')
    assert len(one_process) == len(two_processes) == 2
    for a, b in zip(one_process, two_processes, strict=True):
        for name in ('loss', 'loss_cls', 'loss_bbox', 'grad_norm'):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name

    checkpoint = tmp_path / 'two' / 'epoch_1.pth'
    tested = script(tools / 'dist_test.sh', flat_config_file, checkpoint, 2, '--data-root', shapes,
                    '--work-dir', 'tested', '--out', 'two.pkl', options, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    test(flat_config_file, checkpoint, data_root=shapes, work_dir=tmp_path / 'tested',
         out=tmp_path / 'one.pkl', cfg_options=options)
    predictions = [pickle.loads((tmp_path / name).read_bytes()) for name in ('one.pkl', 'two.pkl')]
    for a, b in zip(*predictions, strict=True):
        assert a['img_id'] == b['img_id']
        torch.testing.assert_close(b['pred_instances']['scores'], a['pred_instances']['scores'])


def test_mistakes_reach_the_exit_status(script, repository, tmp_path):
    nowhere = script(repository / 'tools' / 'dist_train.sh', 'nowhere.py', 2, cwd=tmp_path)
    assert nowhere.returncode == 2 and 'error: no such config: nowhere.py' in nowhere.stderr
    assert 'Traceback' not in nowhere.stderr
    wrong = script(repository / 'tools' / 'dist_train.sh', 'nowhere.py', cwd=tmp_path)
    assert wrong.returncode == 2 and 'number of processes is missing' in wrong.stderr
    one = script(sys.executable, repository / 'tools' / 'train.py', 'nowhere.py', cwd=tmp_path)
    assert one.returncode == 2 and one.stderr.strip() == 'error: no such config: nowhere.py'


@pytest.mark.parametrize('options,fragments', [
    (dict(data_root=None), ['no such folder', '--data-root']),
    (dict(resume='gone.pth'), ['no such file: gone.pth']),
    (dict(launcher='pytorch'), ['torchrun']),
    (dict(work_dir='FILE'), ['can\'t write', 'FILE', '--work-dir']),
    (dict(amp=True, bf16=True), ['choose one']),
    pytest.param(dict(amp=True), ['--amp needs a CUDA GPU'],
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='has a GPU')),
    ({'model.neck.in_channels': [1, 2, 3]}, ['[1, 2, 3]', '[64, 128, 192]']),
    ({'model.backbone.arch': 'm9'}, ['m9', 'm5']),
    ({'model.backbone.type': 'EfficientVit'}, ['EfficientVit is not in the']),
    ({'model.backbone.depth': 50}, ['depth']),
    ({'model.bbox_head.num_classes': 80}, ['80 classes', 'has 4']),
    ({'optim_wrapper.optimizer.type': 'AdamWW'}, ['config can\'t be used as it is']),
    ({'optim_wrapper.optimizer.lrr': 1}, ['lrr']),
    ({'param_scheduler.0.type': 'LinLR'}, ['LinLR']),
    (dict(train_dataloader=5), ["the train dataset can't be read: TypeError"]),
    ({'val_evaluator.metric': 'box'}, ['box'])], ids=str)
def test_mistakes_in_training(options, fragments, mistake, config_file, shapes, tmp_path):
    (tmp_path / 'FILE').write_text('')
    arguments = {'data_root', 'resume', 'launcher', 'work_dir', 'amp', 'bf16'}
    if not set(options) <= arguments:
        options = dict(cfg_options=options)
    sentence = mistake(train, config_file, **{'data_root': shapes, **options})
    assert all(fragment in sentence for fragment in fragments), sentence


def test_resuming_from_nothing(mistake, config_file, shapes, monkeypatch):
    """It says that it starts anew."""
    said = []
    monkeypatch.setattr(run, 'print_log', lambda text, **_: said.append(text))
    wrong = {'model.bbox_head.num_classes': 80}
    assert 'has 4' in mistake(train, config_file, data_root=shapes, work_dir='new', resume=True,
                              cfg_options=wrong)
    assert any('nothing to resume from in' in text and '/new: ' in text for text in said), said
    said.clear()
    assert 'has 4' in mistake(train, config_file, data_root=shapes, cfg_options=wrong)
    assert not said
    assert '--resume' in mistake(train, config_file, data_root=shapes, new_schedule=True)


@pytest.mark.parametrize('source,fragment', [
    ('http://127.0.0.1:9/efficientvit_m0.pth',
     'could not download http://127.0.0.1:9/efficientvit_m0.pth'),
    ('none.pth', 'no such file: none.pth')])
def test_mistakes_in_pretrained_weights(source, fragment, mistake, config, shapes, tmp_path,
                                        monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=source)
    assert fragment in mistake(train, config, data_root=shapes)
    assert config.model.backbone.init_cfg.checkpoint == source and 'work_dir' not in config
    # Random weights need no download.
    configure.set_from_scratch(config)
    assert config.model.backbone.init_cfg is None


def test_mistakes_in_configs(mistake, repository, shapes):
    assert 'no such config: nowhere.py' in mistake(train, 'nowhere.py')
    assert mistake(train, 'retinanet_evit_m4_coc').startswith(
        'no such config: retinanet_evit_m4_coc; did you mean retinanet_evit_m4_coco')
    sentence = mistake(train, 'retinanet_evit_m4_coco', data_root=shapes)
    assert 'circle, square, triangle, star' in sentence
    part = repository / 'configs' / '_base_' / 'schedule_1x_adamw.py'
    assert 'has no model, train_dataloader' in mistake(train, part)
    assert 'the config has no model' in mistake(train, Config(dict(a=1)))


def test_mistakes_in_checkpoints(mistake, config_file, shapes, tmp_path, hostile_pickle):
    torch.save({'state_dict': EfficientViT('m1').state_dict()}, tmp_path / 'other.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'other.pth').read_bytes()[:5000])
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'x': hostile_pickle}, tmp_path / 'hostile.pth')
    torch.save({'model': EfficientViT('m0').state_dict()}, tmp_path / 'classifier.pth')
    torch.save({'state_dict': {'foo': torch.zeros(3), 7: torch.zeros(1)}}, tmp_path / 'foo.pth')
    data = dict(data_root=shapes)
    for name, fragment in (('classifier.pth', 'holds only a backbone (m0 in the evit-mm layout)'),
                           ('foo.pth', 'nothing in common'), ('hostile.pth', 'run code')):
        assert fragment in mistake(train, config_file, cfg_options=dict(load_from=name), **data)
    for name, fragments in (('none.pth', ['no such file: none.pth']),
                            ('other.pth', ['other.pth holds only a backbone (m1']),
                            ('cut.pth', ['cut.pth', 'cut off']),
                            ('hostile.pth', ['hostile.pth is refused', 'run code'])):
        sentence = mistake(test, config_file, name, **data)
        assert all(fragment in sentence for fragment in fragments), sentence
    assert 'run code' in mistake(train, config_file, resume='hostile.pth', **data)
    assert not hostile_pickle.was_run
    assert '.pkl' in mistake(test, config_file, 'other.pth', out='x.json', **data)
