"""Layout, variant and windows are inferred from names and shapes of tensors."""

import pytest
import torch

from evit_mm.checkpoint import (
    LAYOUTS,
    backbone_names,
    classifier_names,
    describe_weights,
    find_prefixes,
    infer_structure,
    variant_of,
)
from evit_mm.models import ARCHS, EfficientViT


def published(arch, layout, *, fused=False, **options):
    """Return a state dict in a layout, or in the fused form of it."""
    state = EfficientViT(arch, **options).state_dict()
    if not fused:
        return {layout.published_key(key): value for key, value in state.items()}
    result = {}
    for key, value in state.items():
        name = layout.fused(layout.published_key(key))
        if key.endswith('.conv.weight'):
            result[name] = value
            result[name.removesuffix('weight') + 'bias'] = value[:, 0, 0, 0]
        elif '.norm.' not in key:
            result[name] = value
    return result


@pytest.mark.parametrize('arch', ARCHS)
def test_names_are_those_of_the_model(arch):
    variant = ARCHS[arch]
    names = backbone_names(variant.depths, variant.num_heads)
    assert sorted(names) == sorted(EfficientViT(arch).state_dict())


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.name)
def test_names_are_unique_in_every_layout(layout):
    for arch in ('m0', 'm5'):
        names = backbone_names(ARCHS[arch].depths, ARCHS[arch].num_heads) + classifier_names()
        assert len(layout.table(names)) == len(names)


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize('arch', ARCHS)
def test_variants_and_windows(arch, layout):
    structure = infer_structure(published(arch, layout, window_sizes=(7, 8, 4)))
    assert structure.layout is layout and not structure.fused
    assert variant_of(structure) == arch and structure.window_sizes == (7, 8, 4)


@pytest.mark.parametrize('layout', [layout for layout in LAYOUTS if layout.fused],
                         ids=lambda layout: layout.name)
def test_fused_exports(layout):
    structure = infer_structure(published('m2', layout, fused=True))
    assert structure.fused and structure.layout is layout and variant_of(structure) == 'm2'


def test_other_models():
    assert infer_structure({}) is None
    # RTMDet has a tensor of this name.
    assert infer_structure({'stem.0.conv.weight': torch.zeros(8, 3, 3, 3)}) is None
    tiny = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2))
    state = EfficientViT(tiny).state_dict()
    assert variant_of(infer_structure(state)) is None
    assert describe_weights(state) == \
        'a custom variant with embed_dims=(16, 24, 32) in the evit-mm layout'
    state['stages.0.blocks.0.attn.attention_biases'] = torch.zeros(2, 48)
    assert infer_structure(state).window_sizes == (0, 7, 7)


def test_variant_of_weights_without_the_last_stages():
    assert describe_weights(EfficientViT('m5', out_indices=(0, 1)).state_dict()) == \
        'm5 in the evit-mm layout'


def test_find_prefixes():
    state = {'stem.0.conv.weight': 0, 'neck.stem.0.conv.weight_': 0}
    assert find_prefixes(state) == ['']
    assert find_prefixes({'student.backbone.patch_embed.0.c.weight': 0,
                          'teacher.backbone.patch_embed.0.c.weight': 0,
                          'mystem.0.conv.weight': 0}) == ['student.backbone.', 'teacher.backbone.']
    assert find_prefixes({'backbone.patch_embed.conv1.weight': 0}) == ['backbone.']  # fused
    assert find_prefixes({'conv1.weight': 0}) == []
