"""Members have the layers of their share, and the member of DeiT's share is DeiT."""

from dataclasses import replace

import pytest
import torch

from evit_mm.analysis.members import (
    AttentionLayer,
    DeiTMember,
    FeedForwardLayer,
    Layers,
    build_member,
    count_layers,
)
from evit_mm.arch import ARCHS
from evit_mm.benchmark.model_factory import build_model
from evit_mm.errors import UserError
from evit_mm.models import EfficientViT
from evit_mm.models.attention import CascadedGroupAttention
from evit_mm.models.layers import FeedForward


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize('name, attention, total', [('m0', 6, 22), ('m4', 6, 22), ('m5', 8, 28)])
def test_layers_are_counted_as_in_the_paper(name, attention, total):
    layers = count_layers(ARCHS[name])
    assert (layers.attention, layers.total) == (attention, total)
    assert layers.share == attention / total


@pytest.mark.parametrize('share', [0, 0.2, 6 / 22, 0.4, 0.5, 0.6, 1])
def test_members_of_efficientvit(share):
    member = build_member('m4', share, (224, 224))
    assert abs(member.layers.share - share) < 0.06
    assert abs(member.layers.total - 22) <= 6
    widths = member.ladder()[30]
    model = member.build(widths)
    assert count(model, CascadedGroupAttention) == member.layers.attention
    assert count(model, FeedForward) == member.layers.feed_forward
    # The description builds the same model.
    again = EfficientViT(member.describe(widths))
    assert again.arch == model.arch and again.arch.embed_dims == widths
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()}


def test_member_of_a_variants_own_share_is_the_variant():
    for name in ('m0', 'm4', 'm5'):
        layers = count_layers(ARCHS[name])
        assert build_member(name, layers.share, (224, 224)).arch == ARCHS[name]
        assert replace(ARCHS[name], num_ffns=1, num_attentions=1) == ARCHS[name]


def test_all_widths_can_be_built():
    member = build_member('m1', 0.4, (224, 224))  # of 2, 3 and 3 heads
    assert member.units == (8, 24, 24)
    for widths in member.ladder():
        replace(member.arch, embed_dims=widths)  # raises if heads do not divide a width


def test_member_of_half_attention_is_deit():
    """The same weights give the same outputs: the layers are halves of DeiT's blocks."""
    member = build_member('deit', 0.5, (64, 96))
    assert isinstance(member, DeiTMember) and member.base == (192, 64, 768)
    ours = member.build(member.base).eval()
    theirs = build_model('timm://deit_tiny_patch16_224', options={'img_size': (64, 96)})
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        own.data.copy_(other.data)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('share, attention', [(0, 0), (0.2, 5), (0.5, 12), (1, 24)])
def test_deit_like_members(share, attention):
    member = build_member('deit', share, (32, 32))
    assert member.layers == Layers(attention, 24 - attention)
    widths = member.ladder()[40]
    model = member.build(widths)
    assert count(model, AttentionLayer) == attention
    assert count(model, FeedForwardLayer) == 24 - attention
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    description = member.describe(widths)
    assert description['embed_dim'] == widths[0] == model.embed_dim
    assert description['layers'].count('A') == attention
    assert (description['head_dim'] is None) == (attention == 0)
    assert (description['hidden_dim'] is None) == (attention == 24)


def test_attention_layers_are_evenly_spaced():
    pattern = DeiTMember(Layers(6, 18), (32, 32)).pattern()
    assert ''.join('FA'[is_attention] for is_attention in pattern) == 'AFFF' * 6


@pytest.mark.parametrize('match, arguments', [
    ('--family m9 is unknown', ('m9', 0.5, (224, 224))),
    ('--shares must be between 0 and 1, got 20', ('m4', 20, (224, 224))),
    ('--shape 40 64 is not a multiple of 16', ('deit', 0.5, (40, 64))),
])
def test_invalid_arguments(match, arguments):
    with pytest.raises(UserError, match=match):
        build_member(*arguments)
