"""A resumed run says which schedule it follows, and can follow the config's exactly."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from small_runs import fresh_registries

from evit_mm.engine.hooks import ResumedScheduleHook, resumed_schedule
from evit_mm.errors import UserError

STEPS = 4  # of an epoch


class OneLayer(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


class Rates(Hook):
    priority = 'LOWEST'

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append([group['lr'] for group in runner.optim_wrapper.param_groups])


@pytest.fixture
def train(tmp_path):
    """Function that trains for some epochs, and returns the rates of all steps, and the runner."""
    def run(schedulers, lr=0.1, epochs=4, resume=None, use_config=False, optimizer='SGD',
            bias_lr=None, folder='other', **options):
        with fresh_registries():
            runner = Runner(
                OneLayer(), work_dir=str(tmp_path / folder),
                train_dataloader=dict(
                    batch_size=2, dataset=[dict(inputs=torch.ones(1))] * 2 * STEPS,
                    sampler=dict(type='DefaultSampler', shuffle=False)),
                optim_wrapper=dict(
                    optimizer=dict(type=optimizer, lr=lr, **options),
                    **(dict(paramwise_cfg=dict(bias_lr_mult=bias_lr)) if bias_lr else {})),
                param_scheduler=schedulers, load_from=resume, resume=bool(resume),
                train_cfg=dict(by_epoch=True, max_epochs=epochs),
                default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
                default_scope='mmengine', experiment_name='schedule')
            recorder = Rates()
            runner.register_hook(recorder)
            runner.register_hook(ResumedScheduleHook(use_config=use_config))
            runner.train()
        return recorder.rates, runner
    return run


@pytest.fixture
def first(train, tmp_path):
    """Function that trains, and returns the checkpoint of the second epoch."""
    def run(*arguments, **options):
        train(*arguments, folder='first', **options)
        return str(tmp_path / 'first' / 'epoch_2.pth')
    return run


def warm_up(steps):
    return dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=steps)


def milestones(*epochs, gamma=0.1):
    return dict(type='MultiStepLR', by_epoch=True, milestones=list(epochs), gamma=gamma)


@pytest.fixture
def said(monkeypatch):
    """What the hook logs."""
    texts = []
    monkeypatch.setattr(resumed_schedule, 'print_log', lambda text, **_: texts.append(text))
    return texts


OLD = [warm_up(3), milestones(3)]


@pytest.mark.parametrize('schedulers,options', [
    ([warm_up(3), milestones(1, 3, gamma=0.3)], {}),
    ([warm_up(11), milestones(2)], dict(lr=0.02)),
    ([warm_up(11), milestones(1)], dict(lr=0.02, weight_decay=0.1, momentum=0.8)),
    ([dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, convert_to_iter_based=True)], {}),
    ([dict(type='PolyLR', by_epoch=False, begin=2, end=14, power=0.9)], dict(lr=0.5)),
    ([milestones(2)], dict(bias_lr=2.0, lr=0.3)),
    ([], dict(lr=0.03))])
def test_schedule_of_the_config(train, first, schedulers, options):
    """The rates are exactly those of a run that followed it from the start."""
    same = dict(bias_lr=options['bias_lr']) if 'bias_lr' in options else {}
    checkpoint = first(OLD, **same)
    expected, _ = train(schedulers, **options)
    rates, runner = train(schedulers, resume=checkpoint, use_config=True, **options)
    assert len(rates) == 2 * STEPS
    assert rates == expected[2 * STEPS:]
    group = runner.optim_wrapper.param_groups[0]
    assert group['weight_decay'] == options.get('weight_decay', 0)
    assert group['momentum'] == options.get('momentum', 0)


def test_schedule_of_the_checkpoint_is_kept_with_a_warning(train, first, said):
    checkpoint = first(OLD)
    expected, _ = train(OLD)
    rates, _ = train([warm_up(3), milestones(2)], lr=0.02, weight_decay=0.1, resume=checkpoint)
    assert rates == expected[2 * STEPS:]
    text, = said
    assert '--new-schedule' in text
    for part in ('lr 0.1 (config: 0.02)', 'weight_decay 0 (config: 0.1)',
                 'milestones [3] (config: [2])'):
        assert part in text, text


def test_nothing_is_said_about_the_same_schedule(train, first, said):
    checkpoint = first(OLD)
    train(OLD, resume=checkpoint)
    assert not said


def test_longer_training(train, first, said):
    """mmengine ends the schedulers where the first run would have ended."""
    checkpoint = first(OLD, epochs=2)
    train(OLD, resume=checkpoint)
    assert 'end 2 (config: 4)' in said[0]


def test_other_schedulers_are_named(train, first, said):
    checkpoint = first(OLD)
    train([milestones(3)], resume=checkpoint)
    assert '2 schedulers (config: 1)' in said[0]


def test_state_of_the_optimizer_is_kept(train, first):
    checkpoint = first(OLD, momentum=0.9)
    state = torch.load(checkpoint, weights_only=False)['optimizer']['state']
    _, runner = train([milestones(9)], momentum=0.9, resume=checkpoint, epochs=2, use_config=True)
    loaded = runner.optim_wrapper.state_dict()['state']
    assert torch.equal(loaded[0]['momentum_buffer'], state[0]['momentum_buffer'])


@pytest.mark.parametrize('use_config', [False, True])
def test_other_groups_of_parameters(train, first, use_config):
    checkpoint = first(OLD)
    with pytest.raises(UserError, match='1 groups of parameters, the config\'s 2.*paramwise_cfg'):
        train(OLD, bias_lr=2.0, resume=checkpoint, use_config=use_config)


def test_schedule_that_follows_a_metric(train, first):
    checkpoint = first(OLD)
    with pytest.raises(UserError, match='follows a metric'):
        train([dict(type='ReduceOnPlateauLR', monitor='loss')], resume=checkpoint, use_config=True)
