"""Losses and gradients that are not finite end a training, or are skipped without a trace."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults.toy_training import Points, Toy, build, same
from mmengine.hooks import EMAHook, Hook

from evit_mm.engine.hooks import NonFiniteHook
from evit_mm.engine.hooks import non_finite as module
from evit_mm.errors import UserError


class SpoiledPoints(Points):
    """Dataset in which one sample has a value that is not finite."""

    def __init__(self, sample, value):
        super().__init__()
        self.sample, self.value = sample, value

    def __getitem__(self, index):
        found = super().__getitem__(index)
        found['data_samples'] = SimpleNamespace(metainfo=dict(img_path=found['data_samples']))
        if index == self.sample:
            found['inputs'] = np.full_like(found['inputs'], self.value)
        return found


class SteepToy(Toy):
    """Model whose loss is finite and whose gradient is not, where an input is 1e6."""

    def forward(self, inputs, data_samples=None, mode='loss'):
        losses = super().forward(inputs, data_samples, mode)
        if np.max(inputs) >= 1e6:
            zero = (self.layers[0].weight * 0).sum()
            return dict(loss_near=losses['loss_near'] * 0 + torch.sqrt(zero))
        return losses


class Snapshots(Hook):
    """Hook that keeps the state before and after each iteration."""

    priority = 'LOWEST'

    def __init__(self):
        self.before, self.after = [], []

    @staticmethod
    def state(runner):
        averages = [hook.ema_model.state_dict() for hook in runner.hooks
                    if isinstance(hook, EMAHook)]
        return copy.deepcopy([runner.model.state_dict(),
                              runner.optim_wrapper.optimizer.state_dict()['state'], averages])

    def before_train_iter(self, runner, *_, **__):
        self.before.append(self.state(runner))

    def after_train_iter(self, runner, *_, **__):
        self.after.append(self.state(runner))

    def untouched(self):
        """Return the numbers of the iterations that have changed nothing."""
        return [number for number, (one, other) in
                enumerate(zip(self.before, self.after, strict=False)) if same(one, other)]


def spoiled(tmp_path, value=float('nan'), skip=0, model=None, **options):
    hooks = [NonFiniteHook(skip=skip), snapshots := Snapshots()]
    runner = build(tmp_path, hooks=hooks, **options)
    loader = dict(dataset=SpoiledPoints(3, value), batch_size=2, num_workers=0,
                  sampler=dict(type='DefaultSampler', shuffle=False))
    runner._train_dataloader = loader
    if model is not None:
        runner.model = model
    return runner, snapshots


# Sample 3 is in the second batch of each pass.
@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e38])
@pytest.mark.parametrize('options', [dict(), dict(by_epoch=True, length=2), dict(bf16=True)],
                         ids=['iterations', 'epochs', 'bf16'])
def test_the_first_one_ends_the_training(value, options, tmp_path, record_property):
    record_property('a loss or gradient that is not finite', 1)
    runner, _ = spoiled(tmp_path, value, **options)
    with pytest.raises(UserError) as caught:
        runner.train()
    text = str(caught.value)
    assert '\n' not in text and text.startswith(
        'iteration 2: the buffer layers.1.running' if value == 1e38 else 'iteration 2: loss_near (')
    assert 'image_2.jpg, image_3.jpg' in text
    if 'by_epoch' in options:
        assert 'there is no checkpoint yet' in text
    else:
        assert f'go back to {tmp_path / "iter_1.pth"} with --resume' in text
        assert torch.isfinite(torch.load(tmp_path / 'iter_1.pth', weights_only=False)
                              ['state_dict']['layers.0.weight']).all()
    assert all(torch.isfinite(weight).all() for weight in runner.model.parameters())


@pytest.mark.parametrize('ema', [False, True])
def test_skipped_steps_change_nothing(ema, tmp_path, record_property):
    record_property('a loss or gradient that is not finite', 1)
    runner, snapshots = spoiled(tmp_path, skip=3, ema=ema)
    runner.train()
    assert snapshots.untouched() == [1, 6, 11]
    assert runner.message_hub.get_info('skipped_non_finite_steps') == 3
    assert 'update_params' not in vars(runner.optim_wrapper)


def test_one_more_ends_the_training(tmp_path, record_property):
    record_property('a loss or gradient that is not finite', 1)
    runner, _ = spoiled(tmp_path, skip=2)
    with pytest.raises(UserError, match=r'^iteration 12: .*\(after 2 skipped steps\)'):
        runner.train()


def test_a_gradient_that_is_not_finite(tmp_path, record_property):
    record_property('a loss or gradient that is not finite', 1)
    torch.manual_seed(0)
    runner, snapshots = spoiled(tmp_path, 1e6, model=SteepToy())
    with pytest.raises(UserError, match='^iteration 2: the norm of the gradients is not finite, in '
                                        'a batch of image_2.jpg, image_3.jpg'):
        runner.train()
    runner, snapshots = spoiled(tmp_path, 1e6, skip=3, model=SteepToy(), ema=True)
    runner.train()
    assert snapshots.untouched() == [1, 6, 11]


def test_an_accumulated_step_is_left_out_as_a_whole(tmp_path, record_property):
    """Steps of three batches: 0-2, 3-5, 6-8, 9-11; batches 1, 6 and 11 are spoiled."""
    record_property('a loss or gradient that is not finite', 1)
    runner, snapshots = spoiled(tmp_path, skip=3, accumulate=3)
    runner.train()
    weights = [state[0]['layers.0.weight'] for state in snapshots.before]
    weights.append(snapshots.after[-1][0]['layers.0.weight'])
    changed = [number for number in range(12)
               if not torch.equal(weights[number], weights[number + 1])]
    assert changed == [5]
    means = [state[0]['layers.1.running_mean'] for state in snapshots.before]
    means.append(snapshots.after[-1][0]['layers.1.running_mean'])
    assert torch.equal(means[0], means[3]) and torch.equal(means[9], means[12])
    assert not torch.equal(means[3], means[6])


class Scaler:
    """GradScaler that skips a step."""

    scale = 65536.0

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.scale


def test_a_loss_scaler_may_skip_steps(tmp_path):
    """Of float16; on this machine without its arithmetic, as mmengine's wrapper needs a GPU."""
    hook = NonFiniteHook()
    runner = SimpleNamespace(iter=4)
    steps = []
    wrapper = SimpleNamespace(loss_scaler=Scaler())
    step = hook._checking_norm(runner, wrapper, lambda: steps.append(1))
    step()
    assert steps == [1]
    wrapper.loss_scaler.scale = 1e-7
    with pytest.raises(UserError, match='^iteration 5: no gradient is finite'):
        step()


def test_images_of_any_batch():
    sample = SimpleNamespace(metainfo=dict(img_path='a.jpg'))
    assert list(module._image_paths(dict(inputs=[torch.zeros(1)], data_samples=[sample]))) == [
        'a.jpg']
    assert list(module._image_paths(dict(sup=dict(data_samples=[sample]), index=3))) == ['a.jpg']
