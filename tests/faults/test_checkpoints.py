"""A process that dies while it writes a checkpoint leaves one to resume from."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from faults.toy_training import Slow, build, final_state, same
from mmengine.config import Config
from mmengine.hooks import Hook

import evit_mm.files
from evit_mm.engine.hooks import SafeCheckpointHook
from evit_mm.engine.hooks import checkpoint as hook_module
from evit_mm.engine.resume_point import find_resume_point, latest_checkpoint
from evit_mm.errors import CheckpointError, UserError

VERSIONS = [dict(length=12), dict(by_epoch=True, length=3, validate=True)]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def resume_point(work_dir):
    return find_resume_point(Config(dict(work_dir=str(work_dir))))


def resume(work_dir, **options):
    assert resume_point(work_dir)
    build(work_dir, resume=True, **options).train()


class CountedCalls:
    """Function that dies at one of its calls, before or after it does what it replaces."""

    def __init__(self, function, number, after=False):
        self.function, self.left, self.after = function, number, after

    def __get__(self, owner, kind=None):  # for functions that become methods
        return lambda *args, **kwargs: self(owner, *args, **kwargs)

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if not self.left and not self.after:
            die()
        result = self.function(*args, **kwargs)
        if not self.left:
            die()
        return result


def half_a_file(path, content):
    Path(f'{path}.{os.getpid()}.tmp').write_bytes(bytes(content)[:len(content) // 2])
    die()


def die_in(window, number):
    """Let this process die in a window of its writing number ``number``."""
    if window == 'the bytes':
        put = hook_module.AtomicLocalBackend.put
        calls = [0]

        def broken(self, obj, filepath):
            calls[0] += 1
            return half_a_file(filepath, obj) if calls[0] == number else put(self, obj, filepath)

        hook_module.AtomicLocalBackend.put = broken
    elif window in ('the rename', 'after the rename'):
        # Every second rename is that of the pointer.
        Path.replace = CountedCalls(Path.replace, 2 * number - 1, after=window != 'the rename')
    elif window in ('the pointer', 'after the pointer'):
        Path.replace = CountedCalls(Path.replace, 2 * number, after=window != 'the pointer')
    else:
        SafeCheckpointHook._delete = CountedCalls(SafeCheckpointHook._delete, number, after=True)


@pytest.mark.parametrize('window', ['the bytes', 'the rename', 'after the rename', 'the pointer',
                                    'after the pointer', 'after the deletion'])
@pytest.mark.parametrize('version', [
    pytest.param(VERSIONS[0], id='iterations'),
    pytest.param(VERSIONS[1], id='epochs', marks=pytest.mark.faults)])
def test_killed_while_writing(window, version, in_child, tmp_path, record_property):
    record_property('SIGKILL while a checkpoint is written', 1)
    build(tmp_path / 'whole', **version).train()

    def train():
        die_in(window, 2)
        build(tmp_path / 'run', **version).train()

    _, status = os.waitpid(in_child(train), 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert Path(latest_checkpoint(tmp_path / 'run')).is_file()
    resume(tmp_path / 'run', **version)
    assert same(final_state(tmp_path / 'run'), final_state(tmp_path / 'whole'))
    # Nothing stays of the interrupted run: max_keep_ckpts is 1.
    names = {path.name for path in (tmp_path / 'run').iterdir() if path.is_file()}
    kept = {name for name in names if name.endswith('.pth') and not name.startswith('best')}
    assert kept == {'epoch_3.pth' if 'by_epoch' in version else 'iter_12.pth'}
    assert not [name for name in names if name.endswith('.tmp')]


@pytest.mark.parametrize('number', [2, pytest.param(20, marks=pytest.mark.faults)])
def test_killed_at_random(number, in_child, tmp_path, record_property):
    record_property('SIGKILL at a random moment', number)
    build(tmp_path / 'whole', length=30).train()
    state = random.Random(5)
    kills = 0
    while kills < number:
        child = in_child(lambda: build(tmp_path / 'run', length=30, hooks=[Slow(0.02)],
                                       resume=bool(latest_checkpoint(tmp_path / 'run'))).train())
        time.sleep(state.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    build(tmp_path / 'run', length=30, resume=bool(resume_point(tmp_path / 'run'))).train()
    assert same(final_state(tmp_path / 'run'), final_state(tmp_path / 'whole'))


@pytest.fixture
def warnings_of_resuming(monkeypatch):
    texts = []
    monkeypatch.setattr('evit_mm.engine.resume_point.print_log',
                        lambda text, **_: texts.append(text))
    return texts


@pytest.fixture(scope='module')
def three_checkpoints(tmp_path_factory):
    """A work dir with the checkpoints of iterations 2, 4 and 6."""
    folder = tmp_path_factory.mktemp('three') / 'run'
    build(folder, length=6, interval=2, keep=-1).train()
    return folder


@pytest.fixture
def run(three_checkpoints, tmp_path):
    """A copy of it, in which the checkpoints have their ages."""
    for path in three_checkpoints.glob('*.pth'):
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        age = int(path.stem.rpartition('_')[2])
        os.utime(copy, (age, age))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_6.pth'))
    return tmp_path


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-500])


def without_numbers(path):
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['state_dict']['layers.0.weight'][0] = float('nan')
    torch.save(checkpoint, path)


def only_weights(path):
    torch.save(dict(state_dict=torch.load(path, weights_only=False)['state_dict']), path)


@pytest.mark.parametrize('damage,reason', [
    (cut_off, 'cut off'), (Path.unlink, 'no such file'), (without_numbers, 'not a number (NaN)'),
    (only_weights, 'not the state of a training')])
def test_a_damaged_checkpoint_is_passed_over(damage, reason, run, warnings_of_resuming,
                                             record_property):
    record_property('the newest checkpoint damaged', 1)
    age = (run / 'iter_6.pth').stat()
    damage(run / 'iter_6.pth')
    if (run / 'iter_6.pth').exists():
        os.utime(run / 'iter_6.pth', (age.st_atime, age.st_mtime))
    assert resume_point(run) == str(run / 'iter_4.pth')
    first, second = warnings_of_resuming
    assert first.startswith('passed over') and str(run / 'iter_6.pth') in first and reason in first
    assert second == f'resuming from {run / "iter_4.pth"}'
    assert latest_checkpoint(run) == str(run / 'iter_4.pth')


@pytest.mark.parametrize('pointer', ['', None, '/gone/iter_6.pth'])
def test_a_pointer_to_nothing(pointer, run, warnings_of_resuming, record_property):
    record_property('last_checkpoint damaged', 1)
    if pointer is None:
        (run / 'last_checkpoint').unlink()
    else:
        (run / 'last_checkpoint').write_text(pointer)
    assert resume_point(run) == str(run / 'iter_6.pth')
    assert warnings_of_resuming[-1] == f'resuming from {run / "iter_6.pth"}'


def test_a_sound_work_dir_is_silent(run, warnings_of_resuming):
    torch.save(dict(state_dict={}), run / 'pretrained.pth')
    assert resume_point(run) == str(run / 'iter_6.pth') and not warnings_of_resuming


def test_nothing_sound_is_an_error(run, tmp_path):
    for path in run.glob('*.pth'):
        cut_off(path)
    with pytest.raises(CheckpointError, match='no sound checkpoint.*leave --resume out'):
        resume_point(run)
    assert resume_point(tmp_path / 'nowhere') is None


class Spoil(Hook):
    """Hook that makes a weight infinite at an iteration."""

    def after_train_iter(self, runner, *_, **__):
        if runner.iter == 4:
            with torch.no_grad():
                runner.model.layers[0].weight[0] = float('inf')


def test_weights_that_are_not_finite_are_not_written(tmp_path, record_property):
    record_property('weights that are not finite', 1)
    with pytest.raises(UserError) as caught:
        build(tmp_path, hooks=[Spoil()]).train()
    assert str(caught.value).startswith('1 of ') and 'layers.0.weight' in str(caught.value)
    assert f'go back to {tmp_path / "iter_4.pth"} with --resume' in str(caught.value)
    assert resume_point(tmp_path) == str(tmp_path / 'iter_4.pth')


def test_a_full_disk_is_found_at_the_start(tmp_path, monkeypatch):
    class Usage:
        free = 10_000

    monkeypatch.setattr(hook_module.shutil, 'disk_usage', lambda _: Usage)
    with pytest.raises(UserError, match=r'has 1 MB left, .* takes about 5 MB: free some space'):
        build(tmp_path, pad=1_000_000).train()
    assert not list(tmp_path.glob('*.pth'))
    Usage.free = 7_000_000
    warnings = []
    monkeypatch.setattr(hook_module, 'print_log', lambda text, **_: warnings.append(text))
    build(tmp_path, pad=1_000_000, length=1).train()
    assert 'room for one checkpoint of about 5 MB, and none for the next' in warnings[0]
    assert (tmp_path / 'iter_1.pth').is_file()


def test_an_unfinished_file_is_deleted_at_the_start(tmp_path):
    (tmp_path / 'iter_3.pth.4711.tmp').write_bytes(b'half')
    (tmp_path / 'mine.tmp').write_bytes(b'kept')
    build(tmp_path, length=1).train()
    assert {path.name for path in tmp_path.glob('*.tmp')} == {'mine.tmp'}


def test_a_folder_is_synced_after_a_file_was_replaced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with evit_mm.files.write_atomically(tmp_path / 'file') as file:
        file.write('text')
    assert synced == [(tmp_path / 'file').stat().st_ino, tmp_path.stat().st_ino]
