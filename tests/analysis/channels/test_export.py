"""An exported architecture can be built and trained, and has the multiply-adds it states."""

from dataclasses import replace

import pytest
import torch
from mmengine.config import Config

from evit_mm.analysis.channels.export import suggest_arch, write_suggestion
from evit_mm.analysis.channels.gates import find_sites, macs_per_channel, total_macs
from evit_mm.analysis.channels.pruning import Ranking, prune, replay
from evit_mm.benchmark.model_factory import build_model
from evit_mm.errors import UserError
from evit_mm.models import ARCHS, EfficientViT


def pruned(model, shape, budget, seed=0, by_stage=0.25, worthless=None):
    """Remove channels by random importance, to which ``by_stage`` adds per stage.

    Channels of the kind ``worthless`` are removed first.
    """
    image = torch.zeros(1, 3, *shape)
    sites = find_sites(model)
    cost, total = macs_per_channel(model, sites, image), total_macs(model, image)
    generator = torch.Generator().manual_seed(seed)
    worth = {site.name: torch.rand(site.count, generator=generator)
             + by_stage * site.stage - 10 * (site.kind == worthless) for site in sites}
    kept = replay(sites, list(prune(
        sites, cost, total, budget=budget, steps=1, ranking=lambda kept: Ranking(worth, 0))))
    return sites, cost, kept, total


@pytest.mark.parametrize(('name', 'shape', 'budget'), [
    ('m0', (192, 192), 0.66), ('m5', (256, 320), 0.8)])
def test_exported_architecture_has_the_target_macs(name, shape, budget):
    model = EfficientViT(name).eval()
    sites, cost, kept, total = pruned(model, shape, budget)
    suggestion = suggest_arch(model.arch, sites, cost, kept, total)
    assert suggestion.target_macs / total == pytest.approx(budget, abs=0.01)
    assert suggestion.macs == pytest.approx(suggestion.target_macs, rel=0.01)
    built = EfficientViT(suggestion.arch).eval()
    assert total_macs(built, torch.zeros(1, 3, *shape)) == suggestion.macs
    assert replace(suggestion.arch, key_dims=model.arch.key_dims,
                   ffn_ratio=model.arch.ffn_ratio) == model.arch


@pytest.mark.parametrize(('name', 'shape'), [
    ('m0', (192, 192)), pytest.param('m4', (256, 256), marks=pytest.mark.slow)])
@pytest.mark.parametrize('budget', [0.66, 0.8])
def test_one_sided_removals_have_the_target_macs(name, shape, budget):
    """Others compensate for stages and kinds that keep less than the narrowest width."""
    model = EfficientViT(name).eval()
    for by_stage in (-1, 0, 1):
        for worthless in ('QK', 'FFN', None):
            sites, cost, kept, total = pruned(model, shape, budget, by_stage=by_stage,
                                              worthless=worthless)
            suggestion = suggest_arch(model.arch, sites, cost, kept, total)
            assert suggestion.macs == pytest.approx(suggestion.target_macs, rel=0.01)
            assert suggestion.within_tolerance
            built = EfficientViT(suggestion.arch).eval()
            assert total_macs(built, torch.zeros(1, 3, *shape)) == suggestion.macs


def test_target_that_no_widths_reach_is_reported():
    model = EfficientViT('m0').eval()
    sites, cost, _, total = pruned(model, (64, 64), 0.9)
    kept = {site.name: torch.arange(site.count) < 1 for site in sites}
    suggestion = suggest_arch(model.arch, sites, cost, kept, total)
    assert not suggestion.within_tolerance and suggestion.macs > 1.01 * suggestion.target_macs
    assert suggestion.arch.key_dims == (4, 4, 4)


def test_widths_are_rounded_means():
    model = EfficientViT('m0').eval()
    sites, cost, kept, total = pruned(model, (192, 192), 0.7)
    arch = suggest_arch(model.arch, sites, cost, kept, total).arch
    for stage in range(3):
        keys = [int(kept[site.name].sum()) for site in sites
                if site.kind == 'QK' and site.stage == stage]
        assert abs(arch.key_dims[stage] - sum(keys) / len(keys)) < 4
        # The first half of the next downsampling has this stage's width.
        width = model.arch.embed_dims[stage]
        hidden = [int(kept[site.name].sum()) for site in sites
                  if site.kind == 'FFN' and site.width == width]
        assert abs(int(arch.ffn_ratio[stage] * width) - sum(hidden) / len(hidden)) < 4
    assert len(set(arch.ffn_ratio)) > 1


def test_nothing_removed_changes_nothing():
    model = EfficientViT('m3').eval()
    sites = find_sites(model)
    image = torch.zeros(1, 3, 64, 64)
    total = total_macs(model, image)
    suggestion = suggest_arch(model.arch, sites, macs_per_channel(model, sites, image),
                              replay(sites, []), total)
    assert suggestion.macs == suggestion.target_macs == total
    assert suggestion.arch == replace(ARCHS['m3'], ffn_ratio=(2.0, 2.0, 2.0))


def test_stages_that_are_not_built_keep_their_widths():
    model = EfficientViT('m0', out_indices=(0, 1)).eval()
    arch = suggest_arch(model.arch, *pruned(model, (96, 96), 0.9)).arch
    assert arch.key_dims[2] == 16 and arch.ffn_ratio[2] == 2
    assert arch.ffn_ratio[0] < 2


def test_exported_config_trains(repository, tmp_path):
    config = repository / 'configs' / 'retinanet_evit_m0_shapes.py'
    model = EfficientViT('m0').eval()
    sites, cost, kept, total = pruned(model, (192, 192), 0.66)
    suggestion = suggest_arch(model.arch, sites, cost, kept, total)
    path = tmp_path / 'm0_narrow.py'
    write_suggestion(path, suggestion, config=str(config), total=total, shape=(192, 192))
    text = path.read_text()
    assert all(f'{macs:,}' in text for macs in (total, suggestion.target_macs, suggestion.macs))
    assert 'Masked value channels are still present' in text
    assert Config.fromfile(path).arch.key_dims == suggestion.arch.key_dims

    detector = build_model(str(path))
    assert total_macs(detector.backbone, torch.zeros(1, 3, 192, 192)) == suggestion.macs
    detector.train()
    optimizer = torch.optim.SGD(detector.backbone.parameters(), lr=0.01)
    losses, images = [], torch.randn(2, 3, 192, 192)
    for _ in range(2):
        loss = sum(x.square().mean() for x in detector.backbone(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    with pytest.raises(UserError, match="can't write .*x.py"):
        write_suggestion(tmp_path / 'absent' / 'x.py', suggestion, config=str(config), total=total,
                   shape=(192, 192))
