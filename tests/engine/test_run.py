"""Whole runs of the tools on generated and on real images."""

import os
import pickle
import re
import subprocess
import sys

import pytest
import torch

from evit_mm.cli import test_parser, train_parser
from evit_mm.engine import config as configure
from evit_mm.engine import test, train
from evit_mm.models import EfficientViT

test.__test__ = test_parser.__test__ = False  # not tests, in spite of their names

TRAINING = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1',
            'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
            'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
            'val_dataloader.persistent_workers=False', 'test_dataloader.num_workers=0',
            'test_dataloader.persistent_workers=False', 'default_hooks.checkpoint.interval=1',
            'train_cfg.val_interval=1']
# A model that has hardly learnt finds nothing above the usual threshold.
RETINANET = ['model.test_cfg.score_thr=0.0']
MASK_RCNN = ['model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=5',
             'model.test_cfg.rpn.max_per_img=50']
SMALL = ['train_dataloader.dataset.pipeline.2.scale=(128,128)',
         'val_dataloader.dataset.pipeline.1.scale=(128,128)',
         'test_dataloader.dataset.pipeline.1.scale=(128,128)']


def precisions(output):
    """What COCO's evaluation prints: precisions and recalls."""
    return [float(value) for value in re.findall(r'^ Average .* = (-?[\d.]+)$', output, re.M)]


def test_trains_resumes_and_tests_from_anywhere(tool, scalars, config_file, shapes, tmp_path):
    """The life of a run: train, stop, resume, test, look."""
    flags = ['--data-root', shapes, '--work-dir', 'run', '--seed', 3]
    first = tool('train.py', config_file, *flags, '--cfg-options', *TRAINING,
                 cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert 'effective batch size 2 (1 process x 2 images), learning rate 0.001' in first.stdout
    assert 'is for a batch of 8 images, not 2' in first.stdout + first.stderr
    run = tmp_path / 'run'
    assert (run / 'epoch_1.pth').is_file() and len(scalars(run)) == 4

    longer = [option.replace('max_epochs=1', 'max_epochs=2')
              for option in (*TRAINING, *RETINANET)]
    resumed = tool('train.py', config_file, *flags, '--resume', '--cfg-options',
                   *longer, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert 'resumed epoch: 1, iter: 4' in resumed.stdout
    assert [entry['step'] for entry in scalars(run)] == [5, 6, 7, 8]
    assert 'bbox_mAP_copypaste' in resumed.stdout

    tested = tool('test.py', config_file, run / 'epoch_2.pth', '--data-root', shapes,
                  '--work-dir', 'tested', '--out', 'found.pkl', '--show-dir', 'pictures',
                  '--cfg-options', *TRAINING, *RETINANET, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95' in tested.stdout
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 4
    with (tmp_path / 'found.pkl').open('rb') as file:
        assert len(pickle.load(file)) == 4
    fast = tool('test.py', config_file, run / 'epoch_2.pth', '--data-root', shapes, '--work-dir',
                'fast', '--fast', '--cfg-options', *TRAINING, *RETINANET, cwd=tmp_path)
    assert fast.returncode == 0, fast.stderr
    assert precisions(fast.stdout) == pytest.approx(precisions(tested.stdout), abs=1e-3)
    assert len(precisions(fast.stdout)) == 12

    augmented = tool('test.py', config_file, run / 'epoch_2.pth', '--data-root', shapes,
                     '--tta', '--cfg-options', *TRAINING, *RETINANET,
                     cwd=tmp_path)
    assert augmented.returncode == 0, augmented.stderr
    assert (tmp_path / 'work_dirs' / config_file.stem).is_dir()


def test_resuming_gives_what_an_uninterrupted_run_gives(tool, scalars, config_file, shapes,
                                                        tmp_path):
    options = [option.replace('max_epochs=1', 'max_epochs=2') for option in TRAINING]
    # No flips: their random numbers start anew with the process.
    options += ['train_dataloader.dataset.pipeline.3.prob=0.0',
                'default_hooks.checkpoint.max_keep_ckpts=-1']

    def run(name, *more):
        result = tool('train.py', config_file, '--data-root', shapes, '--work-dir',
                      name, '--seed', 1, *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return scalars(tmp_path / name)

    whole = run('whole', '--cfg-options', *options)
    resumed = run('resumed', '--resume', tmp_path / 'whole' / 'epoch_1.pth', '--cfg-options',
                  *options)
    assert [entry['step'] for entry in resumed] == [5, 6, 7, 8]
    for a, b in zip(whole[4:], resumed, strict=True):
        assert b['loss'] == pytest.approx(a['loss'], rel=1e-3) and b['lr'] == a['lr']


@pytest.mark.parametrize('detector,arch', [('retinanet', 'm0'),
                                           pytest.param('mask_rcnn', 'm0', marks=pytest.mark.slow),
                                           pytest.param('retinanet', 'm4', marks=pytest.mark.slow),
                                           pytest.param('mask_rcnn', 'm4', marks=pytest.mark.slow)])
def test_real_images(detector, arch, tool, scalars, repository, coco_mini, tmp_path):
    config = repository / 'configs' / f'{detector}_evit_{arch}_coco.py'
    flags = ['--data-root', coco_mini, '--work-dir', tmp_path / 'run']
    # Validated once, by the test.
    options = [*TRAINING, *SMALL, *(RETINANET if detector == 'retinanet' else MASK_RCNN),
               'train_dataloader.dataset.indices=4', 'train_cfg.val_interval=10']
    trained = tool('train.py', config, *flags, '--from-scratch', '--channels-last',
                   '--cfg-options', *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    losses = [entry['loss'] for entry in scalars(tmp_path / 'run')]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    more = [option.replace('max_epochs=1', 'max_epochs=2') for option in options]
    resumed = tool('train.py', config, *flags, '--resume', '--bf16', '--cfg-options', *more,
                   cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert 'resumed epoch: 1' in resumed.stdout
    tested = tool('test.py', config, tmp_path / 'run' / 'epoch_2.pth', *flags, '--fast', '--bf16',
                  '--cfg-options', *options, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert 'bbox_mAP' in tested.stdout
    assert ('segm_mAP' in tested.stdout) == (detector == 'mask_rcnn')


def test_two_processes_are_one_with_the_doubled_batch(tool, scalars, config_file, shapes,
                                                      tmp_path):
    """The same images in the same order, the same losses, step by step."""
    options = [*TRAINING, 'train_dataloader.batch_sampler=None',
               'train_dataloader.dataset.pipeline.3.prob=0.0', 'train_cfg.val_interval=10',
               # A process of its own would learn BN statistics of its own images.
               'model.backbone.norm_eval=True', 'model.backbone.with_cp=True']
    flags = ['--data-root', shapes, '--seed', 5]

    def run(name, batch, launcher=(), **environment):
        result = tool('train.py', config_file, *flags, '--work-dir', name,
                      *(['--launcher', 'pytorch'] if launcher else []), '--cfg-options', *options,
                      f'train_dataloader.batch_size={batch}', cwd=tmp_path, launcher=launcher,
                      **environment)
        assert result.returncode == 0, result.stderr
        return scalars(tmp_path / name), result.stdout

    one, _ = run('one', 4)
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    two, output = run('two', 2, launcher=torchrun, OMP_NUM_THREADS='1')
    assert 'effective batch size 4 (2 processes x 2 images)' in output
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        for name in ('loss', 'loss_cls', 'loss_bbox', 'grad_norm'):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_distributed_scripts(repository, config_file, shapes, tmp_path):
    script = repository / 'tools' / 'dist_train.sh'
    result = subprocess.run(
        [script, config_file, '2', '--data-root', shapes, '--work-dir', tmp_path / 'run',
         '--cfg-options', *TRAINING], cwd=tmp_path, capture_output=True, text=True, timeout=900,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr
    assert 'effective batch size 4 (2 processes x 2 images)' in result.stdout
    tested = subprocess.run(
        [repository / 'tools' / 'dist_test.sh', config_file, tmp_path / 'run' / 'epoch_1.pth', '2',
         '--data-root', shapes, '--work-dir', tmp_path / 'run', '--cfg-options', *TRAINING,
         *RETINANET],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'})
    assert tested.returncode == 0, tested.stderr
    assert re.search(r'bbox_mAP_copypaste', tested.stdout)
    nowhere = subprocess.run([script, 'nowhere.py', '2'], capture_output=True, text=True,
                             timeout=120, env={**os.environ, 'PYTHON': sys.executable})
    assert nowhere.returncode == 2 and 'error: no such config: nowhere.py' in nowhere.stderr
    assert 'Traceback' not in nowhere.stderr
    wrong = subprocess.run([script, config_file], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and 'number of processes is missing' in wrong.stderr


@pytest.mark.parametrize('options,fragments', [
    ([], ['the dataset is not there', '--data-root']),
    (['--data-root', 'SHAPES', '--resume', 'gone.pth'], ['no such checkpoint: gone.pth']),
    (['--data-root', 'SHAPES', '--cfg-options', 'model.neck.in_channels=[1,2,3]'],
     ['[1, 2, 3]', '[64, 128, 192]']),
    (['--data-root', 'SHAPES', '--cfg-options', 'model.backbone.arch=m9'], ['m9', 'm5']),
    (['--data-root', 'SHAPES', '--cfg-options', 'model.backbone.type=EfficientVit'],
     ['EfficientVit is not in the']),
    (['--data-root', 'SHAPES', '--cfg-options', 'model.backbone.depth=50'], ['depth']),
    (['--data-root', 'SHAPES', '--cfg-options', 'model.bbox_head.num_classes=80'],
     ['80 classes', 'has 4']),
    (['--data-root', 'SHAPES', '--cfg-options', 'optim_wrapper.optimizer.type=AdamWW'],
     ['config can\'t be used as it is']),
    (['--data-root', 'SHAPES', '--cfg-options', 'optim_wrapper.optimizer.lrr=1'], ['lrr']),
    (['--data-root', 'SHAPES', '--cfg-options', 'param_scheduler.0.type=LinLR'], ['LinLR']),
    (['--data-root', 'SHAPES', '--cfg-options', 'train_dataloader=5'],
     ['config can\'t be used as it is']),
    (['--data-root', 'SHAPES', '--cfg-options', 'val_evaluator.metric=box'], ['box']),
    (['--data-root', 'SHAPES', '--launcher', 'pytorch'], ['torchrun']),
    (['--data-root', 'SHAPES', '--work-dir', 'FILE'], ['FILE', '--work-dir']),
    pytest.param(['--data-root', 'SHAPES', '--amp'], ['--amp needs a CUDA GPU'],
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='has a GPU')),
])
def test_mistakes_in_training(options, fragments, mistake, config_file, shapes, tmp_path):
    (tmp_path / 'FILE').write_text('')
    options = [str(shapes) if option == 'SHAPES' else option for option in options]
    sentence = mistake(train_parser, train, config_file, *options)
    assert all(fragment in sentence for fragment in fragments), sentence


@pytest.mark.parametrize('source,fragment', [
    ('http://127.0.0.1:9/efficientvit_m0.pth',
     'could not download http://127.0.0.1:9/efficientvit_m0.pth'),
    ('none.pth', 'no such checkpoint: none.pth')])
def test_mistakes_in_pretrained_weights(source, fragment, mistake, config_file, shapes, tmp_path,
                                        monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    pretrained = dict(_delete_=True, type='Pretrained', checkpoint=source)
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(config_file)!r}\n'
        f'model = dict(backbone=dict(init_cfg={pretrained!r}))\n')
    assert fragment in mistake(train_parser, train, 'config.py', '--data-root', shapes)
    # Random weights need no download.
    configure.set_from_scratch(config := configure.load_config('config.py'))
    assert config.model.backbone.init_cfg is None


def test_mistakes_in_configs(mistake, repository, shapes):
    assert 'no such config: nowhere.py' in mistake(train_parser, train, 'nowhere.py')
    sentence = mistake(train_parser, train, repository / 'configs' / 'retinanet_evit_m4_coco.py',
                       '--data-root', shapes)
    assert 'circle, square, triangle, star' in sentence
    part = repository / 'configs' / '_base_' / 'schedule_1x_adamw.py'
    assert 'has no model, train_dataloader' in mistake(train_parser, train, part)
    with pytest.raises(SystemExit, match='2'):  # argparse's own way out
        train_parser().parse_args(['config.py', '--cfg-options', 'model'])


def test_mistakes_in_checkpoints(mistake, config_file, shapes, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / 'owned'), 'w')

    torch.save({'state_dict': EfficientViT('m1').state_dict()}, tmp_path / 'other.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'other.pth').read_bytes()[:5000])
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'x': Hostile()}, tmp_path / 'hostile.pth')
    data = ['--data-root', shapes]
    torch.save({'model': EfficientViT('m0').state_dict()}, tmp_path / 'classifier.pth')
    torch.save({'state_dict': {'foo': torch.zeros(3), 7: torch.zeros(1)}}, tmp_path / 'foo.pth')
    for name, fragment in (('classifier.pth', 'holds a backbone alone (m0 in the evit-mm layout)'),
                           ('foo.pth', 'nothing in common')):
        assert fragment in mistake(train_parser, train, config_file, *data, '--cfg-options',
                                   f'load_from={name}')
    for name, fragments in (('none.pth', ['no such checkpoint: none.pth']),
                            ('other.pth', ['other.pth holds a backbone alone (m1']),
                            ('cut.pth', ['cut.pth', 'cut off']),
                            ('hostile.pth', ['hostile.pth is refused', 'run code'])):
        sentence = mistake(test_parser, test, config_file, name, *data)
        assert all(fragment in sentence for fragment in fragments), sentence
    assert 'run code' in mistake(train_parser, train, config_file, *data, '--resume',
                                 'hostile.pth')
    assert 'run code' in mistake(train_parser, train, config_file, *data, '--cfg-options',
                                 'load_from=hostile.pth')
    assert not (tmp_path / 'owned').exists()
    assert '.pkl' in mistake(test_parser, test, config_file, 'other.pth', *data, '--out', 'x.json')


def test_a_mistake_in_a_process_of_its_own(tool, tmp_path):
    result = tool('train.py', 'nowhere.py', cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.strip() == 'error: no such config: nowhere.py'
