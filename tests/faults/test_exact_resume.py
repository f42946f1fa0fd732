"""A resumed run ends with the weights of an uninterrupted one, to the last bit."""

import os
import signal

import pytest
import torch
from faults.toy_training import build, final_state, same
from mmengine.hooks import Hook


class InterruptAt(Hook):
    """Hook that ends the process before an iteration."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def interrupted(work_dir, iteration, options, in_child):
    """Run until an iteration, and resume with other random numbers in the process."""
    child = in_child(lambda: build(work_dir, **options, hooks=[InterruptAt(iteration)]).train())
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    runner = build(work_dir, **options, resume=True)
    torch.manual_seed(99)
    runner.train()


# An epoch has five iterations; 7 is within the second one, and 5 and 10 are ends.
CASES = [
    dict(options=dict(workers=0), at=[5, 7]),
    dict(options=dict(workers=2), at=[1, 5, 8], long=True),
    dict(options=dict(workers=2, persistent=True), at=[7, 10], long=True),
    dict(options=dict(workers=0, validate=True, ema=True, bf16=True), at=[7], long=True),
    dict(options=dict(workers=2, validate=True, ema=True, bf16=True), at=[8]),
    dict(options=dict(workers=0, by_epoch=True, length=3), at=[10], long=True),
    dict(options=dict(workers=2, by_epoch=True, length=3, validate=True), at=[10]),
    dict(options=dict(workers=2, by_epoch=True, length=3, persistent=True, ema=True, bf16=True),
         at=[10], long=True),
]


def name(case):
    return ' '.join(key if value is True else f'{key} {value}'
                    for key, value in case['options'].items())


@pytest.mark.parametrize('case', [
    pytest.param(case, marks=pytest.mark.faults if case.get('long') else (), id=name(case))
    for case in CASES])
def test_a_resumed_run_equals_a_whole_one(case, in_child, tmp_path):
    options = case['options']
    build(tmp_path / 'whole', **options).train()
    whole = final_state(tmp_path / 'whole')
    for iteration in case['at']:
        interrupted(tmp_path / f'at{iteration}', iteration, options, in_child)
        assert same(final_state(tmp_path / f'at{iteration}'), whole), iteration
