"""Members have the layers that their share says, and DeiT's member is DeiT."""

from dataclasses import replace

import pytest
import torch

from evit_mm.analysis.members import (
    AttentionLayer,
    DeiTMember,
    FeedForwardLayer,
    Layers,
    count_layers,
    member_of,
)
from evit_mm.benchmark.model_factory import build_subject
from evit_mm.errors import UserError
from evit_mm.models import ARCHS, EfficientViT
from evit_mm.models.attention import CascadedGroupAttention
from evit_mm.models.layers import FeedForward


def number(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize('name, attention, total', [('m0', 6, 22), ('m4', 6, 22), ('m5', 8, 28)])
def test_the_paper_counts_alike(name, attention, total):
    layers = count_layers(ARCHS[name])
    assert (layers.attention, layers.total) == (attention, total)
    assert layers.share == attention / total


@pytest.mark.parametrize('share', [0, 0.2, 6 / 22, 0.4, 0.5, 0.6, 1])
def test_members_of_our_family(share):
    member = member_of('m4', share, (224, 224))
    assert abs(member.layers.share - share) < 0.06
    assert abs(member.layers.total - 22) <= 6
    widths = member.ladder()[30]
    model = member.build(widths)
    assert number(model, CascadedGroupAttention) == member.layers.attention
    assert number(model, FeedForward) == member.layers.feed_forward
    # What is written is what is built.
    again = EfficientViT(member.describe(widths))
    assert again.arch == model.arch and again.arch.embed_dims == widths
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()}


def test_the_own_share_is_the_variant_itself():
    for name in ('m0', 'm4', 'm5'):
        layers = count_layers(ARCHS[name])
        assert member_of(name, layers.share, (224, 224)).arch == ARCHS[name]
        assert replace(ARCHS[name], num_ffns=1, num_attentions=1) == ARCHS[name]


def test_every_rung_can_be_built():
    member = member_of('m1', 0.4, (224, 224))  # of 2, 3 and 3 heads
    assert member.units == (8, 24, 24)
    for widths in member.ladder():
        replace(member.arch, embed_dims=widths)  # raises where heads do not divide


def test_deit_is_a_member_of_its_family():
    """Same weights, same outputs: the layers are the model's own, in halves."""
    member = member_of('deit', 0.5, (64, 96))
    assert isinstance(member, DeiTMember) and member.base == (192, 64, 768)
    ours = member.build(member.base).eval()
    theirs = build_subject('timm://deit_tiny_patch16_224', options={'img_size': (64, 96)})
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        own.data.copy_(other.data)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('share, attention', [(0, 0), (0.2, 5), (0.5, 12), (1, 24)])
def test_deit_like_members(share, attention):
    member = member_of('deit', share, (32, 32))
    assert member.layers == Layers(attention, 24 - attention)
    widths = member.ladder()[40]
    model = member.build(widths)
    assert number(model, AttentionLayer) == attention
    assert number(model, FeedForwardLayer) == 24 - attention
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    description = member.describe(widths)
    assert description['embed_dim'] == widths[0] == model.embed_dim
    assert description['layers'].count('A') == attention
    assert (description['head_dim'] is None) == (attention == 0)
    assert (description['hidden_dim'] is None) == (attention == 24)


def test_layers_of_attention_are_spread():
    pattern = ''.join('FA'[attends] for attends in DeiTMember(Layers(6, 18), (32, 32)).pattern())
    assert pattern == 'AFFF' * 6


@pytest.mark.parametrize('match, arguments', [
    ('--family m9 is unknown', ('m9', 0.5, (224, 224))),
    ('between 0 and 1, but got 20', ('m4', 20, (224, 224))),
    ('40 x 64 is no multiple of 16', ('deit', 0.5, (40, 64))),
])
def test_mistakes_are_told(match, arguments):
    with pytest.raises(UserError, match=match):
        member_of(*arguments)
