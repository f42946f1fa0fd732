"""Classifiers without channels give the outputs of masked ones, at the predicted cost.

Multiply-adds are those of convolutions and of all matrix products, those of queries with keys and
of the attention with the values included, as torch counts them when nothing is fused.
"""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.analysis.channels.gates import find_sites, gated, macs_per_channel, total_macs
from evit_mm.analysis.channels.pruning import Ranking, prune, replay

timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')


def sliced(linear, rows=None, columns=None):
    """Return a linear layer with some outputs and inputs of another one."""
    rows = torch.arange(linear.out_features) if rows is None else rows
    columns = torch.arange(linear.in_features) if columns is None else columns
    found = nn.Linear(len(columns), len(rows), bias=linear.bias is not None)
    found.weight.data = linear.weight.data[rows][:, columns].clone()
    if linear.bias is not None:
        found.bias.data = linear.bias.data[rows].clone()
    return found


class NarrowAttention(nn.Module):
    """timm's attention of ViT or Swin, whose heads keep different channels."""

    def __init__(self, whole, queries, values):
        super().__init__()
        self.whole = [whole]  # for its bias tables; in a list, so that it is not a submodule
        total = whole.proj.in_features
        head_dim = total // whole.num_heads
        self.scale = whole.scale
        self.qkv = nn.ModuleList()
        for head, mask in enumerate(queries):
            own = torch.arange(head * head_dim, (head + 1) * head_dim)
            rows, values_kept = own[mask.bool()], own[values[own].bool()]
            self.qkv.append(nn.ModuleList(
                sliced(whole.qkv, part) for part in (
                    rows, total + rows, 2 * total + values_kept)))
        self.proj = sliced(whole.proj, columns=values.nonzero().flatten())

    def forward(self, x, mask=None, attn_mask=None, **_):
        [whole] = self.whole
        mask = attn_mask if mask is None else mask
        bias = whole._get_rel_pos_bias()[0] if hasattr(whole, '_get_rel_pos_bias') else None
        out = []
        for head, parts in enumerate(self.qkv):
            query, key, value = (part(x) for part in parts)
            attention = self.scale * query @ key.transpose(-2, -1)
            if bias is not None:
                attention = attention + bias[head]
            if mask is not None:  # of shifted windows, repeated over the batch
                attention = attention + mask.repeat(len(x) // len(mask), 1, 1)
            out.append(attention.softmax(-1) @ value)
        return self.proj(torch.cat(out, -1))


def without(model, kept):
    """Return the network without the masked channels."""
    for path, module in list(model.named_modules()):
        if f'{path}.V' in kept:
            queries = [kept[f'{path}.{head}.QK'] for head in range(module.num_heads)]
            parent, _, name = path.rpartition('.')
            setattr(model.get_submodule(parent), name,
                    NarrowAttention(module, queries, kept[f'{path}.V']))
        elif f'{path}.FFN' in kept:
            left = kept[f'{path}.FFN'].nonzero().flatten()
            module.fc1, module.fc2 = sliced(module.fc1, left), sliced(module.fc2, columns=left)
    return model.eval()


SMALL_SWIN = dict(img_size=64, embed_dim=12, depths=(1, 2), num_heads=(1, 2), window_size=4)


@pytest.mark.parametrize(('name', 'options', 'budget'), [
    ('deit_tiny_patch16_224', dict(img_size=64, depth=3), 0.66),
    ('deit_tiny_patch16_224', dict(img_size=64, depth=3), 0.3),
    ('swin_tiny_patch4_window7_224', SMALL_SWIN, 0.66),
    ('swin_tiny_patch4_window7_224', SMALL_SWIN, 0.35),
    ('deit_tiny_patch16_224', {}, 0.66),
    ('swin_tiny_patch4_window7_224', {}, 0.66),
])
def test_removed_channels_equal_masked_ones(name, options, budget):
    model = timm.create_model(name, **options).eval()
    for parameter in model.parameters():  # fresh ones are too small to see one channel
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    image = torch.randn(1, 3, *model.patch_embed.img_size)
    sites = find_sites(model)
    cost, total = macs_per_channel(model, sites, image), total_macs(model, image)
    worth = {site.name: torch.rand(site.count) + 0.3 * (site.kind == 'V') for site in sites}
    *_, last = removals = list(prune(sites, cost, total, budget=budget, steps=2,
                                     ranking=lambda kept: Ranking(worth, 0)))
    kept = replay(sites, removals)
    assert {site.kind for site in sites if not kept[site.name].all()} == {'QK', 'V', 'FFN'}

    with torch.no_grad():
        whole = model(image)
        with gated(sites, kept):
            masked = model(image)
        narrow = without(model, kept)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            removed = narrow(image)
    assert counter.get_total_flops() == 2 * last.macs
    assert last.macs == pytest.approx(budget * total, rel=0.01)
    torch.testing.assert_close(removed, masked, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(masked, whole, atol=0.05)
