"""Whole segmentation runs of the tools on generated and on real images."""

import re

import numpy as np
import pytest
from PIL import Image

IGNORED = 255
NUM_CLASSES = 150
LOADERS = [f'{split}_dataloader.{option}' for split in ('train', 'val', 'test')
           for option in ('num_workers=0', 'persistent_workers=False')]
TRAINING = [*LOADERS, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
            'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1',
            'default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.max_keep_ckpts=-1']
NO_DROPOUT = ['model.decode_head.dropout_ratio=0.0', 'model.auxiliary_head.dropout_ratio=0.0']
CROPS_OF_64 = ['train_dataloader.dataset.pipeline.2.scale=(256,64)',
               'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
               'model.data_preprocessor.size=(64,64)',
               'val_dataloader.dataset.pipeline.1.scale=(256,64)',
               'test_dataloader.dataset.pipeline.1.scale=(256,64)']


@pytest.fixture
def config_file(repository):
    return repository / 'configs' / 'upernet_evit_m0_shapes.py'


def printed_metrics(output):
    """aAcc, mIoU and mAcc of the last evaluation, as the log has them."""
    line = [line for line in output.splitlines() if 'mIoU: ' in line][-1]
    return {name: float(re.search(rf'{name}: ([\d.]+)', line)[1])
            for name in ('aAcc', 'mIoU', 'mAcc')}


def metrics_in_numpy(predictions, truths):
    """The same from files: ids of the label maps, 0 for pixels that do not count."""
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


def test_trains_resumes_and_tests(tool, scalars, config_file, scenes, tmp_path):
    """The life of a run: train, stop, resume, test, look; figures equal those of numpy."""
    flags = ['--data-root', scenes, '--work-dir', 'run', '--seed', 3]
    # No flips and no dropout: their random numbers start anew with the process.
    options = [*TRAINING, 'train_dataloader.dataset.pipeline.3.prob=0.0', *NO_DROPOUT]
    longer = [option.replace('max_iters=2', 'max_iters=4') for option in options]

    whole = tool('train.py', config_file, *flags, '--cfg-options', *longer, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = scalars(tmp_path / 'run')
    assert [entry['step'] for entry in expected] == [1, 2, 3, 4]

    resumed = tool('train.py', config_file, '--data-root', scenes, '--work-dir', 'again',
                   '--resume', 'run/iter_2.pth', '--cfg-options', *longer, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert 'passed over 4 samples without loading them' in resumed.stdout
    steps = scalars(tmp_path / 'again')
    assert [entry['step'] for entry in steps] == [3, 4]
    for a, b in zip(expected[2:], steps, strict=True):  # the images it would have seen
        assert b['loss'] == pytest.approx(a['loss'], rel=1e-4) and b['lr'] == a['lr']

    tested = tool('test.py', config_file, 'run/iter_4.pth', '--data-root', scenes, '--work-dir',
                  'tested', '--out', 'found', '--show-dir', 'pictures', '--cfg-options', *LOADERS,
                  cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert printed_metrics(tested.stdout) == printed_metrics(whole.stdout)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4
    found = sorted((tmp_path / 'found').glob('*.png'))
    truths = sorted((scenes / 'annotations' / 'validation').glob('*.png'))
    assert [path.name for path in found] == [path.name for path in truths]
    exact = metrics_in_numpy(found, truths)
    json_log = next((tmp_path / 'tested').glob('*/*.json')).read_text()
    for name, value in exact.items():
        logged = float(re.search(rf'"{name}": ([\d.e+-]+)', json_log)[1])
        assert logged == pytest.approx(value, abs=1e-6)

    augmented = tool('test.py', config_file, 'run/iter_4.pth', '--data-root', scenes, '--tta',
                     '--cfg-options', *LOADERS, cwd=tmp_path)
    assert augmented.returncode == 0, augmented.stderr
    assert 0 <= printed_metrics(augmented.stdout)['mIoU'] <= 100


@pytest.mark.parametrize('head,arch', [('upernet', 'm0'),
                                       pytest.param('semantic_fpn', 'm0', marks=pytest.mark.slow),
                                       pytest.param('upernet', 'm4', marks=pytest.mark.slow),
                                       pytest.param('semantic_fpn', 'm4', marks=pytest.mark.slow)])
def test_real_images(head, arch, tool, scalars, repository, ade_mini, tmp_path):
    config = repository / 'configs' / f'{head}_evit_{arch}_ade20k.py'
    flags = ['--data-root', ade_mini, '--work-dir', tmp_path / 'run', '--cfg-options',
             *TRAINING, *CROPS_OF_64]
    trained = tool('train.py', config, '--from-scratch', *flags, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    losses = [entry['loss'] for entry in scalars(tmp_path / 'run')]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
    resumed = tool('train.py', config, '--resume', *flags, 'train_cfg.max_iters=4', cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert [entry['step'] for entry in scalars(tmp_path / 'run')] == [3, 4]
    tested = tool('test.py', config, tmp_path / 'run' / 'iter_4.pth', '--fast', '--show-dir',
                  tmp_path / 'pictures', *flags, cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert set(printed_metrics(tested.stdout)) == {'aAcc', 'mIoU', 'mAcc'}
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 2


@pytest.mark.slow
def test_two_processes_take_turns_over_the_data(tool, scalars, config_file, scenes, tmp_path):
    """Two processes with two images each see what one sees with four."""
    options = [*TRAINING, 'train_dataloader.dataset.pipeline.3.prob=0.0',
               'train_cfg.val_interval=10', 'model.backbone.norm_eval=True']
    options += [f'model.{head}.norm_cfg.{option}' for head in ('decode_head', 'auxiliary_head')
                for option in ('type=GN', 'num_groups=8')]  # independent of the batch
    options += NO_DROPOUT
    flags = ['--data-root', scenes, '--seed', 5]

    def run(name, batch, launcher=(), **environment):
        result = tool('train.py', config_file, *flags, '--work-dir', name,
                      *(['--launcher', 'pytorch'] if launcher else []), '--cfg-options', *options,
                      f'train_dataloader.batch_size={batch}', cwd=tmp_path, launcher=launcher,
                      **environment)
        assert result.returncode == 0, result.stderr
        return scalars(tmp_path / name)

    one = run('one', 4)
    two = run('two', 2, launcher=['-m', 'torch.distributed.run', '--standalone',
                                  '--nproc-per-node', '2'], OMP_NUM_THREADS='1')
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        for name in ('loss', 'decode.loss_ce', 'aux.loss_ce', 'grad_norm'):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
