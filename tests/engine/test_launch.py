"""A distributed process leaves its group at its end."""

import os

import pytest
import torch

from evit_mm.engine import launch


@pytest.mark.parametrize(('backend', 'is_done', 'expected'), [
    ('gloo', True, ['destroy', 'exit 0']), ('gloo', False, ['destroy']),
    ('nccl', True, ['destroy', 'exit 0']),
    ('nccl', False, []),  # it might wait for the others
    (None, True, ['exit 0']), (None, False, [])])
def test_leaving(backend, is_done, expected, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: backend is not None)
    monkeypatch.setattr(torch.distributed, 'get_backend', lambda: backend)
    monkeypatch.setattr(torch.distributed, 'destroy_process_group',
                        lambda: calls.append('destroy'))
    monkeypatch.setattr(os, '_exit', lambda status: calls.append(f'exit {status}'))
    monkeypatch.setattr(launch, '_work_is_done', False)
    if is_done:
        launch.work_is_done()
    launch._leave_processes()
    assert calls == expected


def test_gpus_need_it_too(config, monkeypatch):
    """mmengine starts the group there, and leaves it to the end of the process."""
    registered = []
    monkeypatch.setattr(launch.atexit, 'register', registered.append)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    launch.prepare_processes(config, 'none')
    assert not registered
    launch.prepare_processes(config, 'slurm')
    assert registered == [launch._leave_processes]
