"""Device, threads and seed are set, or rejected in a sentence."""

import pytest
import torch

from evit_mm.benchmark import machine
from evit_mm.benchmark.machine import describe, use
from evit_mm.errors import UserError


def test_threads_and_seed_are_set():
    before = torch.get_num_threads()
    try:
        device = use('cpu', threads=1, seed=3)
        first = torch.rand(2)
        use('cpu', seed=3)
        assert torch.equal(torch.rand(2), first)
        assert torch.get_num_threads() == 1 and device == torch.device('cpu')
        assert describe(device).endswith(', 1 thread')
    finally:
        torch.set_num_threads(before)


def test_invalid_devices_and_threads_are_rejected():
    with pytest.raises(UserError, match='--device quantum'):
        use('quantum')
    with pytest.raises(UserError, match='--threads must be positive, got 0'):
        use('cpu', threads=0)


def test_the_driver(monkeypatch, tmp_path):
    """The first card's version, and nothing where there is no card or no such program."""
    monkeypatch.setenv('PATH', str(tmp_path))
    assert machine.driver() is None
    program = tmp_path / 'nvidia-smi'
    for script, expected in (('echo 580.65.06; echo 580.65.06', '580.65.06'), ('exit 9', None),
                             (':', None)):
        program.write_text(f'#!/bin/sh\n{script}\n')
        program.chmod(0o755)
        assert machine.driver() == expected
