"""Device, threads and seed are set, or rejected in a sentence."""

import pytest
import torch

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
