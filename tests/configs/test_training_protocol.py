"""The published detectors' learning rates and parameter groups, as the reference has them."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope

DETECTORS = ('retinanet', 'mask_rcnn')
BASE_RATE = 1e-4
WARM_UP = 500


def expected_rate(epoch, iteration):
    """Return the reference's rate: steps before epochs 8 and 11, scaled in the warm-up.

    Args:
        epoch: From 0.
        iteration: From 0, over all epochs.
    """
    rate = BASE_RATE * 0.1 ** sum(epoch >= step for step in (8, 11))
    if iteration >= WARM_UP:
        return rate
    return rate * (1 - (1 - iteration / WARM_UP) * (1 - 0.001))


@pytest.mark.parametrize('iterations', [700, 90, 45], ids=[
    'warm-up inside the first epoch', 'over six epochs', 'over eleven'])
@pytest.mark.parametrize('detector', DETECTORS)
def test_rate_of_every_iteration(detector, iterations, repository):
    """The hook of mmengine steps the config's schedulers over the 12 epochs."""
    config = Config.fromfile(repository / 'configs' / f'{detector}_evit_m4_coco.py')
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))],
                                  lr=config.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler), default_args=dict(optimizer=optimizer))
                  for scheduler in config.param_scheduler]
    runner = SimpleNamespace(param_schedulers=schedulers)
    hook = ParamSchedulerHook()
    assert config.train_cfg.max_epochs == 12
    for epoch in range(12):
        for i in range(iterations):
            iteration = epoch * iterations + i
            optimizer.step()
            rate = optimizer.param_groups[0]['lr']
            assert rate == pytest.approx(expected_rate(epoch, iteration), rel=1e-9), \
                f'iteration {iteration} of epoch {epoch}'
            hook.after_train_iter(runner, i)
        hook.after_train_epoch(runner)


@pytest.mark.parametrize('detector', DETECTORS)
def test_parameter_groups(detector, repository):
    """Every parameter trains with one rate, and decays unless it is an attention bias."""
    config = Config.fromfile(repository / 'configs' / f'{detector}_evit_m4_coco.py')
    init_default_scope(config.default_scope)
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    groups_of_optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    groups = {id(parameter): group for group in groups_of_optimizer
              for parameter in group['params']}
    names = dict(model.named_parameters())
    assert len(names) == sum(len(group['params']) for group in groups_of_optimizer)
    num_biases = 0
    for name, parameter in names.items():
        assert parameter.requires_grad, f'{name} is frozen'
        group = groups[id(parameter)]
        is_bias_table = name.endswith('attention_biases')
        num_biases += is_bias_table
        assert group['weight_decay'] == (0 if is_bias_table else 0.05), name
        assert (group['lr'], group['betas']) == (1e-4, (0.9, 0.999)), name
    assert num_biases == 6  # the blocks of M4
