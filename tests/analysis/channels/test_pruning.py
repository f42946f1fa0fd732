"""Importance is the squared gradient of the gate, and removal follows the ranking."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from evit_mm.analysis.channels.gates import find_sites, gated, macs_per_channel, total_macs
from evit_mm.analysis.channels.pruning import (
    Ranking,
    check_budget,
    lowest_share,
    prune,
    rank,
    replay,
)
from evit_mm.errors import UserError
from evit_mm.models.attention import CascadedGroupAttention
from evit_mm.models.layers import FeedForward

BN = dict(type='BN')
PLANTED, PLAIN, TWINS, DEAD = [5, 1], [0, 7, 3], [2, 6], [4]


def planted_ffn():
    """Return a feed-forward part with equal hidden channels and unequal projection weights.

    Relative to plain channels, twins have half the weight, the dead one none, and the planted ones
    20 and 10 times as much.
    """
    ffn = FeedForward(6, 8, norm_cfg=BN).eval()
    nn.init.ones_(ffn.project.norm.weight)
    with torch.no_grad():
        ffn.expand.conv.weight[:] = ffn.expand.conv.weight[:1]
        column = ffn.project.conv.weight[:, :1].clone()
        for channels, factor in ((PLAIN, 1), (TWINS, 0.5), (DEAD, 0), (PLANTED[:1], 20),
                                 (PLANTED[1:], 10)):
            ffn.project.conv.weight[:, channels] = factor * column
    return ffn


def test_planted_channels_rank_first_twins_and_dead_ones_last(squares):
    ffn = planted_ffn()
    [site] = find_sites(ffn)
    x = torch.randn(3, 6, 5, 5)
    importance = rank([site], replay([site], []), squares(ffn, x)).importance[site.name]
    order = importance.argsort(descending=True).tolist()
    assert order[:2] == PLANTED
    assert set(order[2:5]) == set(PLAIN)
    assert set(order[5:7]) == set(TWINS)
    assert order[7:] == DEAD and importance[4] == 0
    # A twin has half of the gradient, so a quarter of the importance.
    torch.testing.assert_close(importance[TWINS] * 4, importance[PLAIN[:2]])


def test_importance_is_the_mean_of_squares_over_batches(squares):
    ffn = planted_ffn()
    [site] = find_sites(ffn)
    one, two = torch.randn(2, 3, 6, 5, 5)
    everything = replay([site], [])
    single = [rank([site], everything, squares(ffn, x)) for x in (one, two)]
    both = rank([site], everything, squares(ffn, one, two))
    torch.testing.assert_close(both.importance[site.name], sum(
        ranking.importance[site.name] for ranking in single) / 2)
    assert both.loss == pytest.approx(sum(ranking.loss for ranking in single) / 2)


def test_dead_queries_and_values_rank_last(randomized, squares):
    attention = randomized(CascadedGroupAttention(12, 2, 8, 4, (5, 3), norm_cfg=BN))
    with torch.no_grad():
        for row in (8 + 3, 16 + 2):  # a key and a value of the last head
            attention.qkv[1].norm.weight[row] = attention.qkv[1].norm.bias[row] = 0
        attention.qkv[0].norm.weight[8 + 6] *= 30  # a key that dominates the others
    sites = find_sites(attention)
    importance = rank(sites, replay(sites, []),
                      squares(attention, torch.randn(2, 12, 8, 8))).importance
    first_query, _, last_query, last_value = (importance[site.name] for site in sites)
    assert (last_query == 0).nonzero().flatten().tolist() == [3]
    assert last_value[2] == 0
    assert int(first_query.argmax()) == 6


def copy_channel(layer, source, to, share=1.0):
    """Make an output channel of a `ConvNorm` equal to another, with a share of what it gives."""
    with torch.no_grad():
        layer.conv.weight[to] = layer.conv.weight[source]
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            getattr(layer.norm, name)[to] = getattr(layer.norm, name)[source]
        for tensor in (layer.norm.weight, layer.norm.bias):
            tensor[to] *= share


class SideBySide(nn.Module):
    """Two networks, whose channels are ranked together."""

    def __init__(self, alone, shared):
        super().__init__()
        self.alone, self.shared = alone, shared

    def forward(self, x):
        return self.alone(x), self.shared(x)


def check_twins(alone, shared, x, source, kind, twins):
    """Each of the twins ranks below the first of them where that is alone with their work."""
    with torch.no_grad():
        torch.testing.assert_close(shared(x), alone(x), rtol=1e-4, atol=1e-5)
    both = SideBySide(alone, shared)
    sites = [next(site for site in find_sites(both)
                  if site.kind == kind and site.name.startswith(part))
             for part in ('alone', 'shared')]
    importance = rank(sites, replay(sites, []), source(both, x)).importance
    before, after = (importance[site.name] for site in sites)
    order = torch.cat([before, after]).argsort(descending=True).tolist()
    for twin in twins:
        assert order.index(twins[0]) < order.index(len(before) + twin)
        # Half of the weight gives half of the gradient.
        assert after[twin] == pytest.approx(float(before[twins[0]]) / 4, rel=1e-3)
    for other in set(range(len(before))) - set(twins):
        assert after[other] == pytest.approx(float(before[other]), rel=1e-3, abs=1e-12)


def test_equal_hidden_channels_rank_below_a_single_one(randomized, squares):
    """They have equal rows, and columns that are halves of the single one's."""
    alone = randomized(FeedForward(6, 8, norm_cfg=BN))
    copy_channel(alone.expand, 2, 6)
    shared = deepcopy(alone)
    with torch.no_grad():
        alone.project.conv.weight[:, 6] = 0
        shared.project.conv.weight[:, 2] /= 2
        shared.project.conv.weight[:, 6] = shared.project.conv.weight[:, 2]
    check_twins(alone, shared, torch.randn(3, 6, 5, 5), squares, 'FFN', [2, 6])


def test_equal_query_and_key_channels_rank_below_a_single_one(randomized, squares):
    """Their keys are equal, and their queries halves of the single one's."""
    alone = randomized(CascadedGroupAttention(12, 2, 8, 4, (5, 3), norm_cfg=BN))
    for channel in (3, 8 + 3):
        copy_channel(alone.qkv[0], channel, channel + 3)
    shared = deepcopy(alone)
    copy_channel(alone.query_conv[0], 3, 6, share=0)
    copy_channel(shared.query_conv[0], 3, 3, share=0.5)
    copy_channel(shared.query_conv[0], 3, 6)
    check_twins(alone, shared, torch.randn(2, 12, 8, 8), squares, 'QK', [3, 6])


def test_equal_values_rank_below_a_single_one(squares):
    """In timm's attention, where only the projection uses values."""
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    alone = timm.layers.Attention(12, num_heads=2, qkv_bias=True).eval()
    with torch.no_grad():
        for tensor in (alone.qkv.weight, alone.qkv.bias):
            tensor[24 + 4] = tensor[24 + 1]  # of the first head
    shared = deepcopy(alone)
    with torch.no_grad():
        alone.proj.weight[:, 4] = 0
        shared.proj.weight[:, 1] /= 2
        shared.proj.weight[:, 4] = shared.proj.weight[:, 1]
    check_twins(alone, shared, torch.randn(2, 9, 12), squares, 'V', [1, 4])


@pytest.mark.parametrize('size', [64, 240])
def test_gradients_of_gates_equal_finite_differences(backbone, squares, size):
    """At every site, in double precision; an image of 64 pixels is a single window."""
    check_slopes(backbone, squares, size)


@pytest.mark.parametrize(('name', 'options'), [
    ('deit_tiny_patch16_224', dict(embed_dim=24, depth=2, num_heads=3)),
    ('swin_tiny_patch4_window7_224', dict(embed_dim=12, depths=(1, 2), num_heads=(1, 2),
                                          window_size=4))])
def test_gradients_in_timms_models_equal_finite_differences(squares, name, options):
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    model = timm.create_model(name, num_classes=5, img_size=32, **options).eval()
    for parameter in model.parameters():  # fresh ones are so small that nothing attends
        torch.nn.init.normal_(parameter, std=0.3)
    sites = check_slopes(model, squares, 32)
    assert {site.kind for site in sites} == {'QK', 'V', 'FFN'}


def check_slopes(model, squares, size):
    """Compare gradients of the gates with finite differences, and return the sites."""
    model = model.double()
    sites = find_sites(model)
    source = squares(model, torch.randn(1, 3, size, size, dtype=torch.float64))
    ones = {site.name: torch.ones(site.count, dtype=torch.float64) for site in sites}
    with gated(sites, ones) as gates:
        slopes = torch.autograd.grad(source.loss(source.inputs[0]), gates)

    def loss(site, channel, gate):
        changed = ones[site.name].clone()
        changed[channel] = gate
        with torch.no_grad(), gated(sites, {**ones, site.name: changed}):
            return float(source.loss(source.inputs[0]))

    step = 1e-5
    for site, slope in zip(sites, slopes, strict=True):
        for channel in (0, site.count // 2, site.count - 1):
            difference = (loss(site, channel, 1 + step) - loss(site, channel, 1 - step)) / 2 / step
            assert float(slope[channel]) == pytest.approx(
                difference, rel=1e-3, abs=1e-3 * float(slope.abs().max())), site.name
    assert sum(bool(slope.any()) for slope in slopes) > 0.7 * len(sites)
    importance = rank(sites, ones, source).importance
    for site, slope in zip(sites, slopes, strict=True):
        torch.testing.assert_close(importance[site.name], slope ** 2)
    return sites


def test_masked_channels_have_no_importance(squares):
    ffn = planted_ffn()
    [site] = find_sites(ffn)
    kept = replay([site], [])
    kept[site.name][5] = 0
    importance = rank([site], kept, squares(ffn, torch.randn(1, 6, 5, 5))).importance[site.name]
    assert importance[5] == 0 and importance[1] > 0


@pytest.fixture
def plan(backbone):
    """Sites, their costs, the total, and a ranking by random importance."""
    image = torch.zeros(1, 3, 64, 64)
    sites = find_sites(backbone)
    generator = torch.Generator().manual_seed(1)
    worth = {site.name: torch.rand(site.count, generator=generator) for site in sites}
    asked = []

    def ranking(kept):
        asked.append({name: mask.clone() for name, mask in kept.items()})
        return Ranking({name: worth[name] * kept[name] for name in kept}, 1.0)

    ranking.asked, ranking.worth = asked, worth
    return sites, macs_per_channel(backbone, sites, image), total_macs(backbone, image), ranking


@pytest.mark.parametrize('budget', [0.9, 0.75, 0.7])
def test_budget_is_met(plan, budget):
    sites, cost, total, ranking = plan
    removals = list(prune(sites, cost, total, budget=budget, steps=5, ranking=ranking))
    kept = replay(sites, removals)
    left = total - sum(int((kept[site.name] == 0).sum()) * cost[site.name] for site in sites)
    assert left == removals[-1].macs
    assert budget - 0.01 < left / total <= budget
    assert all(mask.sum() >= 1 for mask in kept.values())
    assert len(removals) == 5 and len(ranking.asked) == 5
    for step, (removal, asked) in enumerate(zip(removals, ranking.asked, strict=True)):
        mark = 1 - (1 - budget) * (step + 1) / 5
        assert mark - 0.01 < removal.macs / total <= mark
        assert all(torch.equal(asked[name], mask)
                   for name, mask in replay(sites, removals[:step]).items())


def test_least_important_are_removed_first(plan):
    sites, cost, total, ranking = plan
    kept = replay(sites, list(prune(sites, cost, total, budget=0.9, steps=1, ranking=ranking)))
    gone = torch.cat([ranking.worth[name][mask == 0] for name, mask in kept.items()])
    # The last channel of a site stays even if it is less important.
    left = torch.cat([ranking.worth[name][mask == 1] for name, mask in kept.items()
                      if mask.sum() > 1])
    assert len(gone) > 5 and gone.max() <= left.min()


def test_continued_removal_equals_a_whole_one(plan):
    sites, cost, total, ranking = plan
    settings = dict(budget=0.75, steps=4, ranking=ranking)
    whole = list(prune(sites, cost, total, **settings))
    rest = list(prune(sites, cost, total, **settings, done=whole[:2]))
    assert rest == whole[2:]


def test_unreachable_budget_names_the_lowest(plan):
    sites, cost, total, ranking = plan
    lowest = lowest_share(sites, cost, total)
    with pytest.raises(UserError, match=f"0.1 can't be reached.*{lowest:.3f}") as told:
        next(prune(sites, cost, total, budget=0.1, steps=1, ranking=ranking))
    named = float(str(told.value).split('choose from ')[1].split()[0])
    *_, last = prune(sites, cost, total, budget=named, steps=2, ranking=ranking)
    assert last.macs / total <= named
    for wrong in (1.0, 66, 0, -1, float('nan')):
        with pytest.raises(UserError, match='must be between 0 and 1'):
            next(prune(sites, cost, total, budget=wrong, steps=1, ranking=ranking))


def test_kinds_that_save_nothing_are_refused(plan):
    sites, cost, total, _ = plan
    values = [site for site in sites if site.kind == 'V']
    with pytest.raises(UserError, match='these kinds saves no multiply-adds') as told:
        check_budget(values, cost, total, 0.66)
    assert 'choose from' not in str(told.value)
    # A single channel saves too little for three digits.
    with pytest.raises(UserError, match="can't be reached") as told:
        check_budget(values, {site.name: 1 for site in values}, total, 0.66)
    named = float(str(told.value).split('choose from ')[1].split()[0])
    assert named < 1
    check_budget(values, {site.name: 1 for site in values}, total, named)


def test_unusable_losses_are_reported(squares):
    ffn = planted_ffn()
    sites = find_sites(ffn)
    everything = replay(sites, [])
    with pytest.raises(UserError, match='no batches'):
        rank(sites, everything, squares(ffn))
    with pytest.raises(UserError, match='batch 2 is nan'):
        rank(sites, everything, squares(ffn, torch.ones(1, 6, 2, 2),
                                        torch.full((1, 6, 2, 2), torch.nan)))
    nn.init.zeros_(ffn.project.norm.weight)  # as it is in a fresh network
    with pytest.raises(UserError, match='no channel changes the loss.*--checkpoint'):
        rank(sites, everything, squares(ffn, torch.ones(1, 6, 2, 2)))
