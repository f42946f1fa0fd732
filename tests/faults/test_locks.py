"""A folder that one process writes to is refused to others, and free when that one is gone."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from evit_mm.data import generate_coco
from evit_mm.data.convert import convert_dataset
from evit_mm.errors import UserError
from evit_mm.files import locked_folder


@pytest.fixture
def other(in_child, tmp_path):
    """Start another process that holds the lock of a folder; return its id."""
    started = []

    def start(folder, **options):
        ready = tmp_path / f'ready{len(started)}'

        def hold():
            with locked_folder(folder, 'trains in', **options):
                ready.touch()
                if not os.fork():  # a worker, which outlives a killed process
                    time.sleep(5)
                    os._exit(0)
                time.sleep(60)

        child = in_child(hold)
        started.append(child)
        while not ready.exists():
            time.sleep(0.01)
        return child

    yield start
    for child in started:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_message_names_host_and_process(other, tmp_path, record_property):
    record_property('a folder in use', 1)
    child = other(tmp_path)
    with pytest.raises(UserError) as caught, locked_folder(tmp_path, 'trains in'):
        pass
    assert str(caught.value).startswith(
        f'process {child} on {socket.gethostname()} trains in {tmp_path} already: wait')


def test_a_dead_process_blocks_nobody(other, tmp_path, record_property):
    record_property('a folder in use', 1)
    child = other(tmp_path)
    os.kill(child, signal.SIGKILL)
    while 'State:\tZ' not in Path(f'/proc/{child}/status').read_text():
        time.sleep(0.01)
    with locked_folder(tmp_path, 'trains in'):
        assert (tmp_path / '.lock').read_text().startswith(f'process {os.getpid()} on ')
    assert not (tmp_path / '.lock').exists()


def test_a_folder_that_cannot_be_locked_is_used_without(tmp_path):
    with locked_folder(tmp_path / 'missing', 'trains in'):
        pass


def test_generators_of_data(other, tmp_path, record_property):
    record_property('a folder in use', 1)
    child = other(tmp_path / 'shapes', beside=True)
    with pytest.raises(UserError, match=f'process {child} on .* generates a dataset in'):
        generate_coco(tmp_path / 'shapes', num_train=1, num_val=1, progress=False)
    generate_coco(tmp_path / 'mine', num_train=2, num_val=1, progress=False)
    other(tmp_path / 'out', beside=True)
    with pytest.raises(UserError, match='converts a dataset into'):
        convert_dataset(next((tmp_path / 'mine').rglob('*train*.json')), tmp_path / 'out',
                        source_format='coco', target_format='masks')
    assert not list(tmp_path.glob('.mine.lock'))
