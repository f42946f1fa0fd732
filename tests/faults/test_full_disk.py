"""A disk that gets full ends a command in a sentence, and takes nothing away."""

import contextlib
import errno
import json
import os
import subprocess

import cv2
import numpy as np
import pytest
import torch
from faults.test_signals import Namespace
from faults.toy_training import build, final_state, same
from mmengine.config import Config
from small_models import small_config, small_model

import evit_mm.cli.main
import evit_runtime.cli
from evit_mm.cli.main import _exit_status
from evit_mm.deployment.export import run as export_run
from evit_mm.engine.resume_point import find_resume_point
from evit_mm.errors import UserError, translate_errors
from evit_runtime.model import Model
from evit_runtime.results import Result


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
def test_a_full_disk_during_a_training(small_disk, tmp_path, capsys, record_property):
    record_property('a full disk', 1)
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


def fill(disk, free):
    """Leave some bytes of a disk free."""
    with contextlib.suppress(OSError), open(disk / 'filler', 'wb') as file:
        while True:
            os.write(file.fileno(), bytes(4096))
    os.truncate(disk / 'filler', max(os.path.getsize(disk / 'filler') - free, 0))


def contents(folder):
    """Return the content of each file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*')
            if path.is_file() and path.name != 'filler'}


def fails(run, arguments, capsys, disk, free):
    """Return whether a command fails on a disk with little space; if so, it fails as it should."""
    before = contents(disk)
    fill(disk, free)
    capsys.readouterr()
    status = run([*map(str, arguments)])
    printed = capsys.readouterr().err.strip().rpartition('\n')[2]
    (disk / 'filler').unlink()
    if status == 0:
        return False
    after = contents(disk)
    assert status == 2
    assert printed.startswith('error: can\'t write ')
    assert 'No space left on device' in printed
    assert after.keys() == before.keys()
    return True


class Noise(Model):
    """Detector or segmentor of fixed results."""

    class_names, palette = ('a', 'b'), ((255, 0, 0), (0, 0, 255))

    def __init__(self, task):
        self.task = task

    def _predict(self, images, score_threshold):
        known = dict(class_names=self.class_names, palette=self.palette)
        if self.task == 'semantic segmentation':
            maps = np.random.default_rng(0).integers(0, 2, images[0].shape[:2])
            return [Result(shape=image.shape[:2], label_map=maps, **known) for image in images]
        return [Result(shape=image.shape[:2], boxes=[[0, 0, 300, 200]] * 3, scores=[0.9] * 3,
                       labels=[0, 1, 0], **known) for image in images]


@pytest.fixture
def photos(tmp_path):
    """Four pictures and a video of noise, which compress badly, outside of the small disk."""
    pictures = tmp_path / 'photos'
    pictures.mkdir()
    images = np.random.default_rng(0).integers(0, 255, (12, 240, 320, 3), np.uint8)
    for number in range(4):
        cv2.imwrite(str(pictures / f'{number}.png'), images[number])
    video = cv2.VideoWriter(str(tmp_path / 'noise.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10,
                            (320, 240))
    for image in np.concatenate([images] * 4):
        video.write(image)
    video.release()
    return pictures


def is_readable(path):
    """Return whether an output is whole."""
    if path.suffix == '.mp4':
        video = cv2.VideoCapture(str(path))
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        return count > 0 and sum(video.read()[0] for _ in range(count)) == count
    if path.suffix == '.json':
        return bool(json.loads(path.read_text()))
    return path.suffix == '.csv' or cv2.imread(str(path)) is not None


PREDICTIONS = {  # and the bytes that are not enough
    'pictures': ('detection', 'photos', [], 300_000),
    'crops': ('detection', 'photos', ['--save-crops', '--no-pictures'], 20_000),
    'tables': ('detection', 'photos', ['--no-pictures'], 4096),
    'label maps': ('semantic segmentation', 'photos', ['--no-pictures'], 300_000),
    'a video': ('detection', 'noise.mp4', [], 300_000),
}


@pytest.mark.parametrize('part', [0, *(pytest.param(part, marks=pytest.mark.faults)
                                       for part in (0.1, 0.5, 1))])
@pytest.mark.parametrize('kind', PREDICTIONS)
def test_a_full_disk_during_predictions(kind, part, small_disk, photos, tmp_path, capsys,
                                        monkeypatch, record_property):
    record_property('a full disk', 1)
    task, inputs, flags, too_little = PREDICTIONS[kind]
    if kind == 'tables':
        for number in range(200):
            (photos / f'{number + 4}.png').write_bytes((photos / '0.png').read_bytes())
    monkeypatch.setattr('evit_runtime.load_model', lambda *_, **__: Noise(task))
    arguments = ['predict', 'model.onnx', tmp_path / inputs, '--out', small_disk / 'out', *flags]
    # What was there before, in the same places.
    assert evit_runtime.cli.main([*map(str, arguments), '--overwrite']) == 0
    before = contents(small_disk)
    assert fails(evit_runtime.cli.main, [*arguments, '--overwrite'], capsys, small_disk,
                 int(part * too_little))
    # Pictures that had a place are those of the new run, which are the same.
    assert contents(small_disk) == before
    for path in (small_disk / 'out').rglob('*.*'):
        assert is_readable(path)


@pytest.fixture(scope='module')
def small_detector(tmp_path_factory):
    """The config and the checkpoint of a small detector."""
    folder = tmp_path_factory.mktemp('weights')
    small_config('retinanet').dump(folder / 'config.py')
    torch.save({'state_dict': small_model('retinanet').module.state_dict()}, folder / 'a.pth')
    return folder / 'config.py', folder / 'a.pth'


def once(function):
    """Return a function that calls another one the first time alone."""
    results = []

    def call(*arguments):
        if not results:
            results.append(function(*arguments))
        return results[0]

    return call


@pytest.mark.faults
@pytest.mark.parametrize('suffix', ['.onnx', '.xml', '.pt2'])
def test_a_full_disk_during_an_export(suffix, small_detector, small_disk, capsys, monkeypatch,
                                      record_property):
    command = ['export', *small_detector, '--out', small_disk / f'model{suffix}', '--size', 96, 160,
               '--no-verify']
    run = evit_mm.cli.main.main
    for name in ('to_onnx', 'to_program'):  # once, as it takes most of the time
        monkeypatch.setattr(export_run, name, once(getattr(export_run, name)))
    assert run([*map(str, command)]) == 0
    size = sum(map(len, contents(small_disk).values()))
    before = contents(small_disk)
    parts = [0, 0.3, 0.6, 0.9]
    if suffix == '.xml':  # made from a file of ONNX, which takes space too
        parts += [1.1, 1.3, 1.5, 1.7, 1.9]
    failures = 0
    for part in parts:
        if fails(run, command, capsys, small_disk, int(part * size)):
            failures += 1
            assert contents(small_disk) == before
    record_property('a full disk', failures)
    assert failures > 3


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.pt'])
def test_a_full_disk_during_a_conversion(suffix, small_detector, small_disk, capsys,
                                         record_property):
    record_property('a full disk', 4)
    def run(arguments):
        return evit_mm.cli.main.run_tool('convert', arguments)

    arguments = [small_detector[1], small_disk / f'model{suffix}', '--overwrite']
    assert run([*map(str, arguments)]) == 0
    before = (small_disk / f'model{suffix}').read_bytes()
    size = len(before)
    for part in (0, 0.1, 0.5, 0.9):
        assert fails(run, arguments, capsys, small_disk, int(part * size))
        assert (small_disk / f'model{suffix}').read_bytes() == before
