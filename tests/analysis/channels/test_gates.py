"""Gates of 1 change nothing; gates of 0 are networks without the channel."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from evit_mm.analysis.channels.gates import find_sites, gated, macs_per_channel, total_macs
from evit_mm.errors import UserError
from evit_mm.models import EfficientViT
from evit_mm.models.attention import CascadedGroupAttention
from evit_mm.models.layers import FeedForward

BN = dict(type='BN')


def masks(sites, removed):
    """Return masks of ones, with zeros for ``removed``: {site: channels}."""
    kept = {site.name: torch.ones(site.count) for site in sites}
    for name, channels in removed.items():
        kept[name][channels] = 0
    return kept


def run(model, x, sites=(), kept=None):
    with torch.no_grad(), gated(sites, kept or {}):
        return model(x)


def timm_model(name, **options):
    timm = pytest.importorskip('timm')
    return timm.create_model(name, num_classes=5, img_size=32, **options).eval()


def small_deit():
    return timm_model('deit_tiny_patch16_224', embed_dim=24, depth=2, num_heads=3)


def small_swin():
    return timm_model('swin_tiny_patch4_window7_224', embed_dim=12, depths=(1, 2),
                      num_heads=(1, 2), window_size=4)


def test_gates_of_one_change_no_bit(backbone):
    x = torch.randn(2, 3, 70, 90)
    for model in (backbone, small_deit(), small_swin()):
        inputs = x if model is backbone else torch.randn(2, 3, 32, 32)
        plain, open_ = run(model, inputs), run(model, inputs, find_sites(model))
        for a, b in zip(plain, open_, strict=True):
            assert torch.equal(a, b)
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_all_channels_are_found(backbone):
    """Per block QK and V of each head and two FFN; two more FFN per downsampling."""
    found = [(site.block, site.kind, site.width, site.count) for site in find_sites(backbone)]
    assert found[:6] == [
        ('1.1', 'FFN', 16, 32), ('1.1', 'QK', 16, 8), ('1.1', 'V', 16, 8), ('1.1', 'QK', 16, 8),
        ('1.1', 'V', 16, 8), ('1.1', 'FFN', 16, 32)]
    assert found[6:9] == [('1>2', 'FFN', 16, 32), ('1>2', 'FFN', 24, 48), ('2.1', 'FFN', 24, 48)]
    assert len(found) == 3 * 6 + 2 * 2
    assert [(site.block, site.kind, site.width, site.count) for site in find_sites(small_swin())
            ] == [('1.1', 'QK', 12, 12), ('1.1', 'V', 12, 12), ('1.1', 'FFN', 12, 48)] + [
        entry for block in ('2.1', '2.2') for entry in (
            (block, 'QK', 24, 12), (block, 'QK', 24, 12), (block, 'V', 24, 24),
            (block, 'FFN', 24, 96))]


def test_masked_hidden_channel_removes_its_contribution(randomized):
    ffn = randomized(FeedForward(6, 12, norm_cfg=BN))
    [site] = find_sites(ffn)
    x = torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        hidden = torch.relu(ffn.expand(x))[:, 7:8]
        norm = ffn.project.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        contribution = hidden * (ffn.project.conv.weight[:, 7, 0, 0] * scale)[:, None, None]
    masked = run(ffn, x, [site], masks([site], {site.name: [7]}))
    assert contribution.abs().max() > 0.01
    torch.testing.assert_close(masked, run(ffn, x) - contribution)


def copy_rows(to, source, rows, columns=slice(None)):
    """Fill a `ConvNorm` with some output and input channels of another."""
    to.conv.weight.data = source.conv.weight.data[rows][:, columns].clone()
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
        getattr(to.norm, name).data = getattr(source.norm, name).data[rows].clone()


def test_masked_hidden_channels_equal_removed_ones(randomized):
    ffn = randomized(FeedForward(6, 12, norm_cfg=BN))
    [site] = find_sites(ffn)
    left = [0, 1, 4, 5, 6, 8, 9, 11]
    smaller = FeedForward(6, len(left), norm_cfg=BN).eval()
    copy_rows(smaller.expand, ffn.expand, left)
    copy_rows(smaller.project, ffn.project, slice(None), left)
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(run(ffn, x, [site], masks([site], {site.name: [2, 3, 7, 10]})),
                               run(smaller, x))


def test_masked_query_and_key_channels_equal_removed_ones(randomized):
    """Other channels in each head; the scale is that of the wider head."""
    attention = randomized(CascadedGroupAttention(12, 2, 8, 4, (5, 3), norm_cfg=BN))
    nn.init.normal_(attention.attention_biases)
    lefts = [[0, 2, 3, 7], [1, 4, 5, 6]]
    smaller = CascadedGroupAttention(12, 2, 4, 4, (5, 3), norm_cfg=BN).eval()
    smaller.scale = attention.scale
    smaller.attention_biases = attention.attention_biases
    smaller.proj = attention.proj
    for head, left in enumerate(lefts):
        rows = [*left, *(8 + channel for channel in left), *range(16, 22)]
        copy_rows(smaller.qkv[head], attention.qkv[head], rows)
        copy_rows(smaller.query_conv[head], attention.query_conv[head], left)
    sites = find_sites(attention)
    queries = [site for site in sites if site.kind == 'QK']
    gone = {site.name: sorted(set(range(8)) - set(left))
            for site, left in zip(queries, lefts, strict=True)}
    x = torch.randn(2, 12, 6, 9)
    masked = run(attention, x, sites, masks(sites, gone))
    torch.testing.assert_close(masked, run(smaller, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked, run(attention, x), atol=1e-3)


def test_masked_value_feeds_neither_projection_nor_next_head(randomized):
    attention = randomized(CascadedGroupAttention(12, 2, 8, 4, (5, 3), norm_cfg=BN))
    sites = find_sites(attention)
    first = next(site for site in sites if site.kind == 'V')
    blind = deepcopy(attention)
    with torch.no_grad():  # a value whose BN gives 0
        blind.qkv[0].norm.weight[16 + 4] = 0
        blind.qkv[0].norm.bias[16 + 4] = 0
    x = torch.randn(2, 12, 6, 9)
    torch.testing.assert_close(run(attention, x, sites, masks(sites, {first.name: [4]})),
                               run(blind, x))


@pytest.mark.parametrize('build', [small_deit, small_swin])
def test_masked_channels_of_timm_equal_zero_weights(build):
    model = build()
    for parameter in model.parameters():  # fresh ones are too small to see one channel
        nn.init.normal_(parameter, std=0.3)
    sites = find_sites(model)
    path, attention = [(path, module) for path, module in model.named_modules()
                       if path.endswith('.attn')][-1]
    dim, heads = attention.qkv.in_features, attention.num_heads
    mlp = model.get_submodule(path.replace('.attn', '.mlp'))
    last = (heads - 1) * (dim // heads)  # where the last head's channels begin
    for name, linear, row in ((f'{path}.{heads - 1}.QK', attention.qkv, last + 2),
                              (f'{path}.V', attention.qkv, 2 * dim + 5),
                              (f'{path.replace(".attn", ".mlp")}.FFN', mlp.fc2, None)):
        channel = {'K': 2, 'V': 5, 'N': 9}[name[-1]]
        blind, x = deepcopy(model), torch.randn(2, 3, 32, 32)
        twin = dict(zip(model.modules(), blind.modules(), strict=True))[linear]
        with torch.no_grad():
            if row is None:
                twin.weight[:, channel] = 0
            else:
                twin.weight[row] = twin.bias[row] = 0
        masked = run(model, x, sites, masks(sites, {name: [channel]}))
        torch.testing.assert_close(masked, run(blind, x))
        assert not torch.allclose(masked, run(model, x), atol=1e-6)


@pytest.mark.parametrize('shape', [(64, 64), (96, 144)])
def test_costs_equal_savings_of_narrower_networks(backbone, shape):
    image = torch.zeros(1, 3, *shape)
    sites = find_sites(backbone)
    cost = macs_per_channel(backbone, sites, image)
    arch = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2))
    thin_keys = EfficientViT(arch=dict(**arch, key_dims=(5, 8, 7))).eval()
    lost = {0: 3, 1: 0, 2: 1}
    saved = sum(lost[site.stage] * cost[site.name] for site in sites if site.kind == 'QK')
    assert total_macs(backbone, image) - total_macs(thin_keys, image) == saved > 0
    thin_ffn = EfficientViT(arch=dict(**arch, key_dims=(8, 8, 8), ffn_ratio=1.5)).eval()
    saved = sum(site.width // 2 * cost[site.name] for site in sites if site.kind == 'FFN')
    assert total_macs(backbone, image) - total_macs(thin_ffn, image) == saved > 0
    assert {cost[site.name] for site in sites if site.kind == 'V'} == {0}


@pytest.mark.parametrize(('build', 'tokens', 'windows'),
                         [(small_deit, 5, [1, 1]), (small_swin, 16, [4, 1, 1])])
def test_costs_of_timm_by_hand(build, tokens, windows):
    model = build()
    sites = find_sites(model)
    cost = macs_per_channel(model, sites, torch.zeros(1, 3, 32, 32))
    blocks = {}
    for site in sites:
        blocks.setdefault(site.block, {})[site.kind] = cost[site.name], site.width
    for count, kinds in zip(windows, blocks.values(), strict=True):
        everywhere = count * tokens
        assert kinds == {kind: (everywhere * (2 * width + tokens * (kind != 'FFN')), width)
                         for kind, (_, width) in kinds.items()}


def test_unknown_kinds_are_refused():
    with pytest.raises(UserError, match='Sequential has no channels'):
        find_sites(nn.Sequential(nn.Conv2d(3, 4, 1)))
    timm = pytest.importorskip('timm')
    vit = timm.create_model('vit_tiny_patch16_224', qk_norm=True, embed_dim=24, depth=1,
                            num_heads=2)
    with pytest.raises(UserError, match='blocks.0.attn normalises'):
        find_sites(vit)
    swin = timm.create_model('swinv2_tiny_window8_256', embed_dim=12, depths=(1,), num_heads=(1,))
    with pytest.raises(UserError, match='unsupported kind'):
        find_sites(swin)
