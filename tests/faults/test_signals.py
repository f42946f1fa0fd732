"""SIGTERM and Ctrl-C end a training with a checkpoint, from which it continues exactly."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from faults.toy_training import Slow, build, final_state, same
from mmengine.config import Config
from mmengine.hooks import Hook

from evit_mm.cli.main import _exit_status
from evit_mm.engine.hooks import StopSignalHook
from evit_mm.engine.resume_point import find_resume_point, latest_checkpoint


class SignalAt(Hook):
    """Hook that sends a signal to its own process, in an iteration or a validation."""

    def __init__(self, number, iteration, validation=False, twice=False):
        self.number, self.iteration = number, iteration
        self.validation, self.twice = validation, twice

    def send(self):
        for _ in range(1 + self.twice):
            os.kill(os.getpid(), self.number)
            time.sleep(0.01)  # the handler runs between two instructions

    def before_train_iter(self, runner, *_, **__):
        if not self.validation and runner.iter == self.iteration:
            self.send()

    def before_val_iter(self, runner, batch_idx, **__):
        if self.validation and runner.iter == self.iteration and batch_idx == 1:
            self.send()


class Namespace:
    """Stand-in for parsed arguments."""

    launcher, resume = 'none', None


def status_of(work_dir, in_child, fault, **options):
    """Return the exit status of a command that trains, and what it printed."""
    printed = Path(f'{work_dir}.txt')

    def train():
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr = os.fdopen(2, 'w', buffering=1)  # in the place of pytest's
        hooks = [StopSignalHook(), fault]
        raise SystemExit(_exit_status(
            Namespace, lambda _: build(work_dir, hooks=hooks, **options).train()))

    _, status = os.waitpid(in_child(train), 0)
    return os.waitstatus_to_exitcode(status), printed.read_text()


KINDS = [dict(length=12), dict(length=12, interval=4, workers=2, ema=True, validate=True),
         dict(by_epoch=True, length=3, workers=2), dict(by_epoch=True, length=3, accumulate=2)]


@pytest.mark.parametrize('number,code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize('options', [
    pytest.param(KINDS[0], id='iterations'),
    pytest.param(KINDS[1], id='iterations, validated', marks=pytest.mark.faults),
    pytest.param(KINDS[2], id='epochs'),
    pytest.param(KINDS[3], id='accumulated', marks=pytest.mark.faults)])
def test_a_signal_saves_and_ends(number, code, options, in_child, tmp_path, record_property):
    record_property('SIGTERM or Ctrl-C', 1)
    got, printed = status_of(tmp_path / 'run', in_child, SignalAt(number, 6), **options)
    assert got == code
    first, last = printed.strip().splitlines()[-2:]
    assert first.startswith(f'{number.name}: saving a checkpoint after this iteration')
    iteration = 8 if 'accumulate' in options else 7
    path = tmp_path / 'run' / f'iter_{iteration}.pth'
    assert last.startswith(f'stopped after iteration {iteration}, which is saved as {path}; to go '
                           'on: ') and last.endswith(' --resume')
    assert latest_checkpoint(tmp_path / 'run') == str(path)
    build(tmp_path / 'run', resume=True, **options).train()
    build(tmp_path / 'whole', **options).train()
    assert same(final_state(tmp_path / 'run'), final_state(tmp_path / 'whole'))
    assert not path.exists() or path.name == 'iter_12.pth'  # a regular one has replaced it


@pytest.mark.faults
@pytest.mark.parametrize('interval', [1, 5])
def test_a_signal_in_a_validation(interval, in_child, tmp_path, record_property):
    record_property('SIGTERM or Ctrl-C', 1)
    options = dict(length=12, validate=True, ema=True, interval=interval)
    fault = SignalAt(signal.SIGTERM, 6, validation=True)
    got, printed = status_of(tmp_path / 'run', in_child, fault, **options)
    assert got == 143 and f'iteration 6, which is saved as {tmp_path / "run" / "iter_6.pth"}' \
        in printed
    build(tmp_path / 'run', resume=True, **options).train()
    build(tmp_path / 'whole', **options).train()
    assert same(final_state(tmp_path / 'run'), final_state(tmp_path / 'whole'))


@pytest.mark.parametrize('number,code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(number, code, in_child, tmp_path, record_property):
    record_property('SIGTERM or Ctrl-C', 1)
    fault = SignalAt(number, 6, twice=True)
    got, printed = status_of(tmp_path / 'run', in_child, fault, interval=5)
    assert got == code
    path = tmp_path / 'run' / 'iter_5.pth'
    assert f'stopped at once; go back to {path} with --resume' in printed
    assert find_resume_point(Config(dict(work_dir=str(tmp_path / 'run')))) == str(path)


@pytest.mark.faults
def test_a_signal_to_all_processes_of_a_group(in_child, tmp_path, record_property):
    """Ctrl-C reaches the dataloader's workers too, and Slurm's SIGTERM may."""
    record_property('SIGTERM or Ctrl-C', 1)
    def train():
        os.setpgid(0, 0)
        raise SystemExit(_exit_status(Namespace, lambda _: build(
            tmp_path, hooks=[StopSignalHook(), Slow(0.05)], length=200, workers=2).train()))

    child = in_child(train)
    deadline = time.monotonic() + 60
    while not latest_checkpoint(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 143
    assert find_resume_point(Config(dict(work_dir=str(tmp_path)))) == latest_checkpoint(tmp_path)


def test_the_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    build(tmp_path, hooks=[StopSignalHook()], length=2).train()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_training_in_a_thread_leaves_signals_alone(tmp_path):
    thread = threading.Thread(target=lambda: build(tmp_path, hooks=[StopSignalHook()],
                                                   length=2).train())
    thread.start()
    thread.join()
    assert (tmp_path / 'iter_2.pth').is_file()
