"""A bar on a terminal, and lines often enough in a log."""

import io
import logging
import os
import pty
import select
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine.hooks import LoggerHook

from evit_mm.engine.console import hide_iterations
from evit_mm.engine.hooks import ProgressHook, progress


class Terminal(io.StringIO):
    """A stream that looks like a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def run(monkeypatch):
    """A runner of ten iterations, what it logs, and a clock that tests set."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, 'monotonic', lambda: clock.now)
    logger = logging.Logger('run')
    lines = []
    scalars = {f'train/{name}': SimpleNamespace(current=lambda value=value: value)
               for name, value in (('loss_cls', 0.25), ('loss', 0.75), ('lr', 0.001))}
    return SimpleNamespace(
        runner=SimpleNamespace(
            iter=0, max_iters=10, logger=SimpleNamespace(info=lines.append), hooks=[LoggerHook(4)],
            train_dataloader=range(10), val_dataloader=range(3), test_dataloader=range(3),
            message_hub=SimpleNamespace(log_scalars=scalars),
            visualizer=SimpleNamespace(add_scalars=lambda tag, step: lines.append(step)),
            log_processor=SimpleNamespace(
                get_log_after_iter=lambda runner, batch, mode: ({}, f'iteration {batch + 1}'))),
        lines=lines, clock=clock, logger=logger)


def test_the_first_iteration_is_logged_and_one_each_minute(run):
    hook = ProgressHook(terminal=False)
    hook.before_train(run.runner)
    for iteration, now in enumerate((0, 10, 20, 30, 40, 95, 100, 110, 120, 175)):
        run.clock.now = now
        run.runner.iter = iteration
        hook.after_train_iter(run.runner, iteration)
    # LoggerHook itself logs the iterations 4 and 8; the sixth is 65 s after the fourth.
    assert run.lines == ['iteration 1', 1, 'iteration 6', 6, 'iteration 10', 10]


def test_a_bar_on_a_terminal(run, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stdout', terminal)
    logger = run.runner.logger = run.logger
    logger.handlers = [logging.StreamHandler(terminal)]
    hook = ProgressHook()
    run.runner.iter = 4  # resumed
    hook.before_train(run.runner)
    for batch in range(6):
        run.clock.now += 2
        hook.after_train_iter(run.runner, batch)
        run.runner.iter += 1
    logger.info('Epoch(train) [1][ 5/10]  lr: 1.0000e-03  eta: 0:00:10  time: 0.1  loss: 0.75')
    logger.info('Epoch(val) [1][3/3]    coco/bbox_mAP: 0.5000  data_time: 0.1  time: 0.3')
    hook.before_val_epoch(run.runner)
    for batch in range(3):
        hook.after_val_iter(run.runner, batch)
    hook.after_train(run.runner)
    logger.info('afterwards, Epoch(train)')
    shown = terminal.getvalue()
    for text in ('training:', '10/10', 'loss 0.75, lr 0.001', 'validating', 'mAP: 0.5000',
                 'afterwards'):
        assert text in shown, text
    assert 'eta: 0:00:10' not in shown
    assert [type(handler) for handler in logger.handlers] == [logging.StreamHandler]


def test_a_bar_of_a_test(run, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stdout', terminal)
    run.runner.logger = run.logger
    hook = ProgressHook()
    hook.before_test(run.runner)
    for batch in range(3):
        hook.after_test_iter(run.runner, batch)
    assert 'testing' in terminal.getvalue() and '3/3' in terminal.getvalue()
    hook.close()  # again, after it has ended


def test_a_failed_run_leaves_the_terminal_as_it_was(run, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', Terminal())
    run.runner.logger = run.logger
    handler = logging.StreamHandler(sys.stdout)
    run.logger.handlers = [handler]
    hook = ProgressHook()
    hook.before_train(run.runner)
    assert run.logger.handlers != [handler]
    hook.close()
    assert run.logger.handlers == [handler] and not handler.filters


def test_warnings_are_never_hidden(run, capsys):
    handler = logging.StreamHandler(sys.stdout)
    run.logger.handlers = [handler]
    with hide_iterations(run.logger):
        run.logger.warning('Epoch(train) [1][1/2]  eta: 0:00:01')
        run.logger.info('Epoch(train) [1][2/2]  eta: 0:00:00')
        run.logger.info('Exp name: mine')
    assert capsys.readouterr().out == 'Epoch(train) [1][1/2]  eta: 0:00:01\n'


def test_a_terminal_that_does_not_tell_its_size():
    """As in a container or under `script`: tqdm itself would show nothing."""
    ours, theirs = pty.openpty()  # 0 x 0 characters
    code = 'from evit_mm.engine.hooks import progress; bar = progress._bar("training", 2); ' \
           'bar.update(2); bar.close()'
    done = subprocess.Popen([sys.executable, '-c', code], stdout=theirs, stderr=subprocess.DEVNULL)
    shown = b''
    while b'2/2' not in shown and (select.select([ours], [], [], 1)[0] or done.poll() is None):
        if select.select([ours], [], [], 0)[0]:
            shown += os.read(ours, 4096)
    assert done.wait() == 0 and b'training: 100%' in shown
