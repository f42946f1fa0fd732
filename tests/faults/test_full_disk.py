"""A disk that gets full ends a training in a sentence, and takes nothing away."""

import errno
import os
import subprocess

import pytest
from faults.test_signals import Namespace
from faults.toy_training import build, final_state, same
from mmengine.config import Config

from evit_mm.cli.main import _exit_status
from evit_mm.engine.resume_point import find_resume_point
from evit_mm.errors import UserError, translate_errors


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', folder],
                      capture_output=True).returncode:
        pytest.skip('may not mount a file system')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


# A checkpoint has 0.8 MB: the fourth one has no place.
def test_a_full_disk_during_a_training(small_disk, tmp_path, capsys):
    options = dict(length=8, pad=200_000, keep=-1)
    status = _exit_status(Namespace, lambda _: build(small_disk / 'run', **options).train())
    assert status == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith('error: can\'t write ') and 'No space left on device' in printed
    names = {path.name for path in (small_disk / 'run').iterdir() if path.is_file()}
    assert not [name for name in names if name.endswith('.tmp')]
    kept = sorted(name for name in names if name.endswith('.pth'))
    assert kept and kept == [f'iter_{number}.pth' for number in range(1, len(kept) + 1)]
    assert find_resume_point(Config(dict(work_dir=str(small_disk / 'run')))) == str(
        small_disk / 'run' / kept[-1])
    # With space again, it goes on as if nothing had happened.
    for name in kept[:-1]:
        (small_disk / 'run' / name).unlink()
    build(small_disk / 'run', resume=True, **{**options, 'keep': 1}).train()
    build(tmp_path / 'whole', **options).train()
    assert same(final_state(small_disk / 'run'), final_state(tmp_path / 'whole'))


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_anywhere_is_a_sentence(number, capsys):
    def write(_=None):
        raise OSError(number, os.strerror(number), '/data/scalars.json')

    assert _exit_status(Namespace, write) == 2
    assert capsys.readouterr().err.startswith(
        f'error: can\'t write /data/scalars.json: {os.strerror(number)}; free some space')
    with pytest.raises(UserError, match='^can\'t write /data/scalars.json: .* is kept'), \
            translate_errors(pass_if=lambda: True):
        write()
