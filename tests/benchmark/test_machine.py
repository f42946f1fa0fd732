"""Device, threads and seed are set, or refused in a sentence."""

import pytest
import torch

from evit_mm.benchmark.machine import describe, use
from evit_mm.errors import UserError


def test_a_machine_is_set_up_and_described():
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


def test_what_is_not_there_is_told():
    with pytest.raises(UserError, match='--device quantum'):
        use('quantum')
    with pytest.raises(UserError, match='--threads must be positive, got 0'):
        use('cpu', threads=0)
