"""Peak and saved memory against numbers computed by hand."""

import pytest
import torch
from torch import nn

from evit_mm.benchmark.memory import peak_bytes, saved_bytes

CPU = torch.device('cpu')
SIZE = 1 << 20  # large compared with the scalars that torch allocates


@pytest.fixture
def ones():
    return torch.ones(SIZE // 4)


def test_the_peak_is_the_sum_of_live_tensors(ones):
    def chain():
        first = ones * ones
        second = first * ones
        del first
        return second * ones

    def fan():
        first, second = ones * ones, ones * ones
        return first * second

    assert peak_bytes(chain, CPU) == 2 * SIZE
    assert peak_bytes(fan, CPU) == 3 * SIZE
    assert peak_bytes(lambda: ones.view(2, -1)[0], CPU) == 0


def test_memory_from_before_does_not_count(ones):
    held = []

    def swap():
        held.pop()  # freed before anything is allocated
        return ones * ones

    # Allocated under the profiler, which would not know its size otherwise when it is freed.
    assert peak_bytes(lambda: held.append(ones * ones), CPU) == SIZE
    assert peak_bytes(swap, CPU) == SIZE


def test_storages_count_once_and_weights_do_not_count():
    image = torch.zeros(1, 3, 10, 12)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    last = nn.Conv2d(8, 8, 1)
    hidden = 8 * 120 * 4
    assert saved_bytes(lambda: conv(image), [conv]) == image.nbytes
    # ReLU saves its output, which is the last convolution's input: one storage.
    assert saved_bytes(lambda: last(torch.relu(conv(image))), [conv, last]) \
        == image.nbytes + hidden
    assert saved_bytes(lambda: last(torch.relu(conv(image))), [conv]) \
        == image.nbytes + hidden + last.weight.nbytes


def test_frozen_norms_save_their_input_and_folded_ones_do_not():
    """The reason for training with folded BN, in a single layer."""
    conv, norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8).eval()
    image = torch.zeros(1, 3, 50, 40)
    plain = saved_bytes(lambda: norm(conv(image)), [conv, norm])

    def folded():
        weight = conv.weight * norm.weight[:, None, None, None]
        return nn.functional.conv2d(image, weight, norm.bias)

    assert plain >= image.nbytes + 8 * 2000 * 4
    assert saved_bytes(folded, [conv, norm]) == image.nbytes + conv.weight.nbytes


def test_nothing_is_saved_without_gradients():
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        assert saved_bytes(lambda: conv(torch.zeros(1, 3, 9, 9)), [conv]) == 0
