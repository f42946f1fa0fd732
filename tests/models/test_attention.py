"""Windows and cascaded group attention against slow, plain restatements."""

import pytest
import torch
import torch.nn.functional as F

from evit_mm.models.attention import (
    CascadedGroupAttention,
    partition_windows,
    relative_position_index,
    reverse_windows,
)

BN = dict(type='BN')


def test_position_index_by_hand():
    # Tokens of a 2x2 window: (0,0) (0,1) (1,0) (1,1); entry = |dy| * 2 + |dx|.
    assert relative_position_index(2).tolist() == [
        [0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]


@pytest.mark.parametrize('height,width', [(7, 7), (3, 5), (14, 7), (7, 14), (8, 20), (1, 1)])
def test_windows_hold_the_map_and_zeros(height, width):
    x = torch.randn(2, 3, height, width)
    windows = partition_windows(x, 7)
    rows, columns = -(-height // 7), -(-width // 7)
    assert windows.shape == (2 * rows * columns, 3, 7, 7)
    for b in range(2):
        for row in range(rows):
            for column in range(columns):
                patch = x[b, :, 7 * row:7 * row + 7, 7 * column:7 * column + 7]
                expected = torch.zeros(3, 7, 7)
                expected[:, :patch.shape[1], :patch.shape[2]] = patch
                assert torch.equal(windows[(b * rows + row) * columns + column], expected)
    assert torch.equal(reverse_windows(windows, height, width), x)


def _attention(window_size=4, **options):
    attention = CascadedGroupAttention(24, 3, 8, window_size, (5, 3, 3), norm_cfg=BN, **options)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 0.3)
        for module in attention.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
    return attention.double().eval()


def _conv_norm(layer, x, groups=1):
    weight, norm = layer.conv.weight, layer.norm
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] \
        + norm.bias[:, None, None]


def _slow_window(attention, window):
    """One (C, S, S) window, token by token."""
    size, outputs, feature = window.shape[-1], [], 0
    for head, split in enumerate(window.chunk(3)):
        feature = split + feature
        query, key, value = _conv_norm(attention.qkv[head], feature[None])[0].split((8, 8, 8))
        query = _conv_norm(attention.query_conv[head], query[None], groups=8)[0]
        feature = torch.zeros_like(value)
        for y in range(size):
            for x in range(size):
                logits = torch.zeros(size, size, dtype=window.dtype)
                for v in range(size):
                    for u in range(size):
                        bias = attention.attention_biases[head, abs(y - v) * size + abs(x - u)]
                        logits[v, u] = query[:, y, x] @ key[:, v, u] / 8 ** 0.5 + bias
                weights = logits.flatten().softmax(0).view(size, size)
                feature[:, y, x] = (value * weights).sum((1, 2))
        outputs.append(feature)
    return _conv_norm(attention.proj, torch.relu(torch.cat(outputs))[None])[0]


@torch.no_grad()
def test_attention_equals_the_slow_restatement():
    attention = _attention()
    x = torch.randn(1, 24, 6, 4, dtype=torch.float64)
    upper = _slow_window(attention, x[0, :, :4])
    lower = _slow_window(attention, F.pad(x[0, :, 4:], (0, 0, 0, 2)))  # padding is not masked
    expected = torch.cat([upper, lower[:, :2]], dim=1)
    torch.testing.assert_close(attention(x)[0], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_biases_are_never_stale():
    attention = _attention()
    x = torch.randn(1, 24, 4, 4, dtype=torch.float64)
    before = attention(x)
    state = {**attention.state_dict(), 'attention_biases': torch.randn(3, 16)}
    attention.load_state_dict(state)  # in eval mode, where the reference keeps the old ones
    fresh = _attention()
    fresh.load_state_dict(state)
    after = attention(x)
    assert not torch.allclose(before, after)
    assert torch.equal(after, fresh(x))
    assert attention.float()(x.float()).dtype == torch.float32
    assert 'bias_index' not in attention.state_dict()
