"""The length of a training and what follows from it."""

import functools
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.registry import HOOKS, PARAM_SCHEDULERS

from evit_mm.engine import config as configure
from evit_mm.engine import recipe
from evit_mm.engine.hooks import SafeCheckpointHook
from evit_mm.engine.recipe import RecipeFlags, apply_flags, fit_recipe
from evit_mm.errors import ConfigError, UserError

NAMES = ('retinanet_evit_m0_coco', 'retinanet_evit_m0_shapes', 'retinanet_evit_m0_memorize',
         'dino_evit_m4_coco', 'rtmdet_evit_m4_coco', 'evit_det_s_coco')


@functools.cache
def packaged(name):
    return configure.load_config(name)


def length(config, images):
    """Return the iterations of a training, and those between two validations."""
    loop, batch = config.train_cfg, config.train_dataloader.batch_size
    steps = -(-images // batch) if 'max_epochs' in loop else 1
    return loop.get('max_epochs', loop.get('max_iters')) * steps, loop.val_interval * steps


def rates(config, images):
    """Return the learning rate of each iteration, from mmengine's own schedulers."""
    iterations, _ = length(config, images)
    steps = -(-images // config.train_dataloader.batch_size)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(
        optimizer=optimizer, epoch_length=steps)) for scheduler in config.param_scheduler]
    found = []
    for iteration in range(1, iterations + 1):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or iteration % steps == 0:
                scheduler.step()
    return found


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('images', [2, 24, 700])
def test_any_number_of_images(name, images):
    config = deepcopy(packaged(name))
    fit_recipe(config, images, RecipeFlags())
    iterations, between = length(config, images)
    assert iterations >= 1500
    assert iterations <= 1500 + 100 * images
    assert iterations / between <= 20
    assert config.train_dataloader.batch_size <= max(2, images // 4)
    assert config.default_hooks.checkpoint.interval == config.train_cfg.val_interval
    found = rates(config, images)
    full = config.optim_wrapper.optimizer.lr
    assert 0.95 * full <= max(found) <= 1.000001 * full  # a cosine falls during the warm-up, too
    assert found.index(max(found)) <= 0.1 * iterations + 1
    assert found[0] < 0.2 * full or 'dino' in name  # which has no warm-up
    assert found[-1] <= 0.11 * full  # the rate falls before the end


def test_a_long_training_is_shortened_unless_its_length_is_given(capsys):
    config = packaged('evit_det_s_coco')  # 300 epochs, in batches of 32 images
    own, given, option = deepcopy(config), deepcopy(config), deepcopy(config)
    fit_recipe(own, 3200, RecipeFlags())
    sentence = 'the config\'s 300 epochs are shortened to 100'
    assert sentence in capsys.readouterr().out
    fit_recipe(given, 3200, RecipeFlags(epochs=300))
    fit_recipe(option, 3200, RecipeFlags(), ['train_cfg.max_epochs'])
    assert own.train_cfg.max_epochs == 100
    switch = next(hook for hook in own.custom_hooks if 'switch_epoch' in hook)
    assert switch['switch_epoch'] == 93  # the last fifteenth is without mosaic and mixup
    assert given.train_cfg.max_epochs == option.train_cfg.max_epochs == 300
    assert sentence not in capsys.readouterr().out


def test_the_steps_of_the_schedule_stay_at_their_shares():
    config = deepcopy(packaged('retinanet_evit_m0_coco'))
    fit_recipe(config, 30, RecipeFlags(epochs=120))
    assert config.param_scheduler[1].milestones == [80, 110]
    assert config.param_scheduler[0].end == 180  # a tenth of 120 epochs of 15 iterations
    found = rates(config, 30)
    full = config.optim_wrapper.optimizer.lr
    shares = [sum(abs(rate - full * factor) < 1e-9 for rate in found) / len(found)
              for factor in (0.1, 0.01)]
    assert shares == pytest.approx([30 / 120, 10 / 120])


@pytest.mark.parametrize('epochs,milestones', [(24, [16, 22]), (3, [2]), (1, [1]), (12, [8, 11])])
def test_epochs_of_any_config(epochs, milestones):
    config = deepcopy(packaged('retinanet_evit_m0_coco'))
    apply_flags(config, RecipeFlags(epochs=epochs, lr=3e-4, batch_size=5))
    assert config.train_cfg.max_epochs == epochs
    assert config.param_scheduler[1].milestones == milestones
    assert config.param_scheduler[0].end == 501  # the config's own
    assert config.optim_wrapper.optimizer.lr == 3e-4 and config.train_dataloader.batch_size == 5


@pytest.mark.parametrize('name', ['evit_det_s_coco', 'rtmdet_evit_m4_coco'])
@pytest.mark.parametrize('epochs', [1, 2, 3])
def test_a_schedule_of_300_epochs_fits_into_a_few(name, epochs):
    config = deepcopy(packaged(name))
    fit_recipe(config, 40, RecipeFlags(epochs=epochs))
    found = rates(config, 40)
    assert len(found) == epochs * 4
    assert found[-1] < 0.6 * max(found)


def test_what_else_counts_epochs():
    config = deepcopy(packaged('rtmdet_evit_m4_coco'))
    apply_flags(config, RecipeFlags(epochs=30, lr=0.002))
    assert config.custom_hooks[1].switch_epoch == 28
    assert config.train_cfg.dynamic_intervals == [(28, 1)]
    cosine = config.param_scheduler[1]
    assert (cosine.begin, cosine.end, cosine.T_max) == (15, 30, 15)
    assert cosine.eta_min == pytest.approx(0.0001)  # was 0.0002, for a rate of 0.004


@pytest.mark.parametrize('epochs,switch', [(300, 280), (12, 11), (3, 2), (1, 0)])
def test_the_last_epoch_has_no_strong_augmentation(epochs, switch):
    config = deepcopy(packaged('evit_det_s_coco'))
    apply_flags(config, RecipeFlags(epochs=epochs))
    assert config.custom_hooks[1].switch_epoch == switch


def test_iterations_and_epochs_are_converted(shapes, config_file, capsys):
    config = deepcopy(packaged('retinanet_evit_m0_memorize'))
    configure.set_data_root(config, shapes)  # eight images, in batches of four
    config.train_dataloader.dataset.metainfo = dict(
        classes=('circle', 'square', 'triangle', 'star'))
    apply_flags(config, RecipeFlags(epochs=60))
    assert config.train_cfg.max_iters == 120
    assert config.param_scheduler[0].end == 12  # the warm-up: at most a tenth
    assert (config.param_scheduler[1].begin, config.param_scheduler[1].end) == (12, 120)
    assert '--epochs 60 are 120 iterations' in capsys.readouterr().out
    config = Config.fromfile(config_file)
    configure.set_data_root(config, shapes)  # in batches of eight
    config.train_dataloader.batch_size = 3
    apply_flags(config, RecipeFlags(iters=10))
    assert config.train_cfg.max_epochs == 4 and config.param_scheduler[1].T_max == 4


def test_the_rate_follows_the_batch():
    config = deepcopy(packaged('retinanet_evit_m0_coco'))  # 1e-4 for 16 images
    fit_recipe(config, 1000, RecipeFlags(batch_size=4))
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.5e-4)
    assert config.auto_scale_lr.base_batch_size == 4  # no warning of another batch size
    config = deepcopy(packaged('retinanet_evit_m0_coco'))
    config.optim_wrapper.optimizer = dict(type='SGD', lr=0.02)
    fit_recipe(config, 1000, RecipeFlags(batch_size=4))
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.005)
    fit_recipe(config, 1000, RecipeFlags(lr=0.3))
    assert config.optim_wrapper.optimizer.lr == 0.3


def test_options_of_the_command_line_win():
    options = {'train_cfg.max_epochs': 7, 'train_cfg.val_interval': 3,
               'train_dataloader.batch_size': 9, 'optim_wrapper.optimizer.lr': 0.5,
               'default_hooks.logger.interval': 33, 'param_scheduler.0.end': 4}
    config = configure.load_config('retinanet_evit_m0_coco', options)
    schedulers = deepcopy(config.param_scheduler)
    fit_recipe(config, 20, RecipeFlags(), options)
    for path, value in options.items():
        if 'scheduler' not in path:
            assert functools.reduce(lambda part, key: part[key], path.split('.'), config) == value
    assert config.param_scheduler == schedulers


@pytest.mark.parametrize('flags,reason', [
    (dict(epochs=0), '--epochs must be above 0'), (dict(lr=-1.0), '--lr must be'),
    (dict(lr=float('nan')), '--lr must be'), (dict(batch_size=-2), '--batch-size must be'),
    (dict(epochs=1, iters=2), 'choose one')])
def test_flags_that_make_no_sense(flags, reason):
    with pytest.raises(UserError, match=reason):
        apply_flags(deepcopy(packaged('retinanet_evit_m0_coco')), RecipeFlags(**flags))


def test_the_best_checkpoint_is_kept():
    for name, metric in (('retinanet_evit_m0_coco', 'coco/bbox_mAP'),
                         ('mask_rcnn_evit_m0_coco', 'coco/segm_mAP'),
                         ('upernet_evit_m0_shapes', 'mIoU')):
        config = deepcopy(packaged(name))
        recipe.keep_best_checkpoint(config)
        recipe.write_safe_checkpoints(config)
        assert config.default_hooks.checkpoint.save_best == metric
        assert config.default_hooks.checkpoint.type.endswith('.SafeCheckpointHook')
    config = deepcopy(packaged('retinanet_evit_m0_coco'))
    config.default_hooks.checkpoint.save_best = 'loss'  # whose rule is another
    recipe.keep_best_checkpoint(config)
    recipe.write_safe_checkpoints(config)
    hook = HOOKS.build(dict(config.default_hooks.checkpoint))
    assert isinstance(hook, SafeCheckpointHook) and hook.rules == ['less']
    for change in (dict(save_best=None), dict(type='OwnHook')):
        config = deepcopy(packaged('retinanet_evit_m0_coco'))
        config.default_hooks.checkpoint.update(change)
        before = deepcopy(config.default_hooks.checkpoint)
        recipe.keep_best_checkpoint(config)
        assert config.default_hooks.checkpoint == before
    recipe.write_safe_checkpoints(config)
    assert config.default_hooks.checkpoint == before
    # Without one in the config, mmengine takes its own.
    bare = Config(dict(default_hooks=dict(timer=dict(type='IterTimerHook'))))
    recipe.write_safe_checkpoints(bare)
    assert bare.default_hooks.checkpoint.type.endswith('.SafeCheckpointHook')


def test_a_validation_without_the_metric_is_passed_over(monkeypatch):
    saved = []
    monkeypatch.setattr(SafeCheckpointHook, '_save_best_checkpoint',
                        lambda self, runner, metrics: saved.append(metrics))
    hook = SafeCheckpointHook(interval=1, save_best='coco/bbox_mAP', rule='greater')
    runner = SimpleNamespace()
    hook.after_val_epoch(runner, {})
    hook.after_val_epoch(runner, {'other': 1.0})
    hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.5})
    assert saved == [{'coco/bbox_mAP': 0.5}]


class Runner(SimpleNamespace):
    """What `add_switches` and `warn_of_schedule` need of a runner."""

    def __init__(self, config, iterations, val_interval=1):
        super().__init__(cfg=config, hooks=[], val_loop=object(), train_loop=SimpleNamespace(
            max_iters=iterations, val_interval=val_interval))

    def register_hook(self, hook):
        self.hooks.append(hook)


def test_switches():
    runner = Runner(packaged('retinanet_evit_m0_coco'), 1000)
    recipe.add_switches(runner, early_stopping=None, ema=False)
    assert not runner.hooks
    recipe.add_switches(runner, early_stopping=3, ema=True)
    stopping, average = runner.hooks
    assert isinstance(stopping, EarlyStoppingHook) and stopping.patience == 3
    assert stopping.monitor == 'coco/bbox_mAP' and stopping.min_delta == 0.001
    assert isinstance(average, EMAHook) and average.ema_cfg['momentum'] == 0.01
    recipe.add_switches(runner, early_stopping=None, ema=True)
    assert len(runner.hooks) == 2  # one average is enough
    with pytest.raises(UserError, match='at least 1'):
        recipe.add_switches(runner, early_stopping=0, ema=False)
    runner.val_loop = None
    with pytest.raises(ConfigError, match='needs a validation'):
        recipe.add_switches(runner, early_stopping=3, ema=False)


@pytest.mark.parametrize('change,warning', [
    ({}, ''), ({'param_scheduler.0.end': 121}, 'the warm-up takes 121 iterations'),
    ({'default_hooks.logger.interval': 300}, 'no loss will be logged'),
    ({'train_cfg.val_interval': 300}, 'validated at its end only'),
    ({'param_scheduler': [dict(type='MultiStepLR', by_epoch=False, milestones=[240])]},
     'lowers the learning rate after 240 iterations')])
def test_a_schedule_that_makes_no_sense(change, warning, capsys):
    config = configure.load_config('retinanet_evit_m0_memorize')
    config.merge_from_dict(change)
    recipe.warn_of_schedule(Runner(config, 240, config.train_cfg.val_interval))
    printed = capsys.readouterr()
    assert (warning in printed.out + printed.err) if warning else \
        'WARNING' not in printed.out + printed.err
