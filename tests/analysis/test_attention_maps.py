"""The captured maps are those that the model uses."""

import pytest
import torch
from torch import nn

from evit_mm.analysis.attention_maps import capture_maps, drop_prefix_tokens
from evit_mm.errors import UserError
from evit_mm.models import ARCHS, EfficientViT
from evit_mm.models.attention import CascadedGroupAttention, partition_windows, reverse_windows

TOLERANCE = dict(rtol=1e-6, atol=1e-6)


def captured(model, images, attentions):
    """Return the maps, and the input and output of each attention module, by block."""
    maps, passed, hooks = {}, {}, []
    for name, module in model.named_modules():
        if isinstance(module, attentions):
            hooks.append(module.register_forward_hook(
                lambda _, inputs, output, name=name:
                passed.update({name.removesuffix('.attn'): (inputs[0], output)})))
    with capture_maps(model, lambda captured: maps.update({captured.block: captured})):
        output = model(images)
    for hook in hooks:
        hook.remove()
    assert list(maps) == list(passed)
    return maps, passed, output


def our_output(attention, x, maps):
    """Compute cascaded group attention from maps, without queries and keys."""
    windows, outputs = partition_windows(x, attention.window_size), []
    for head, channels in enumerate(windows.chunk(attention.num_heads, dim=1)):
        if outputs:
            channels = channels + outputs[-1]
        value = attention.qkv[head](channels)[:, 2 * attention.key_dim:]
        outputs.append((value.flatten(2) @ maps[:, head].mT).view_as(value))
    out = attention.proj(torch.relu(torch.cat(outputs, dim=1)))
    return reverse_windows(out, *x.shape[2:])


def timms_output(attention, x, maps):
    """Compute timm's multi-head attention from maps, of tokens (B, N, C)."""
    batch, tokens, _ = x.shape
    value = attention.qkv(x).view(batch, tokens, 3, attention.num_heads, -1)[:, :, 2]
    return attention.proj((maps @ value.transpose(1, 2)).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize('arch', ARCHS)
@torch.no_grad()
def test_our_maps_give_our_output(arch, randomized):
    model = randomized(EfficientViT(arch), gain=2).double()
    images = torch.randn(2, 3, 150, 90, dtype=torch.float64)  # some windows are padded
    maps, passed, output = captured(model, images, CascadedGroupAttention)
    assert len(maps) == sum(ARCHS[arch].depths)
    for block, (x, expected) in passed.items():
        block_maps = maps[block].maps
        torch.testing.assert_close(block_maps.sum(-1), torch.ones_like(block_maps[..., 0]))
        actual = our_output(model.get_submodule(f'{block}.attn'), x, block_maps)
        torch.testing.assert_close(actual, expected, **TOLERANCE)
    for actual, expected in zip(output, model(images), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize('name,options', {
    'deit_tiny_patch16_224': dict(depth=2, img_size=64),
    'deit_tiny_distilled_patch16_224': dict(depth=2, img_size=64),
    'swin_tiny_patch4_window7_224': dict(depths=(2, 2), num_heads=(3, 6), img_size=(116, 92)),
}.items())
@torch.no_grad()
def test_timms_maps_give_timms_output(name, options, randomized):
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    model = randomized(timm.create_model(name, **options), gain=2).double()
    size = options['img_size']
    images = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size)).double()
    attentions = [module for module in model.modules() if hasattr(module, 'fused_attn')]
    for module in attentions:
        module.fused_attn = True
    with_fused = model(images)
    maps, passed, output = captured(model, images, tuple({type(m) for m in attentions}))
    assert all(module.fused_attn for module in attentions)
    assert len(maps) == len(attentions)
    for block, (x, expected) in passed.items():
        block_maps = maps[block].maps
        actual = timms_output(model.get_submodule(f'{block}.attn'), x, block_maps)
        torch.testing.assert_close(actual, expected, **TOLERANCE)
    torch.testing.assert_close(output, with_fused, **TOLERANCE)
    torch.testing.assert_close(output, model(images), **TOLERANCE)
    prefix = {'deit_tiny_patch16_224': 1, 'deit_tiny_distilled_patch16_224': 2}.get(name, 0)
    for found in maps.values():
        tokens = found.maps.shape[-1]
        without = drop_prefix_tokens(found)
        assert without.maps.shape[2:] == (tokens - prefix, tokens - prefix)
        assert without.inside.shape[1] == tokens - prefix
        assert torch.equal(without.maps, found.maps[..., prefix:, prefix:])


def capture_one(model, x):
    """Return the maps of a model with one attention module."""
    found = []
    with capture_maps(model, found.append), torch.no_grad():
        model(x)
    assert len(found) == 1
    return found[0]


def test_padded_queries_are_marked():
    attention = CascadedGroupAttention(16, 2, 8, 7, (3, 3), norm_cfg=dict(type='BN')).eval()
    found = capture_one(attention, torch.randn(2, 16, 8, 20))
    assert found.maps.shape == (2 * 2 * 3, 2, 49, 49)
    # Two rows of windows of 7 and 1 rows, each three of 7, 7 and 6 columns; then the next image.
    assert found.inside.sum(1).tolist() == 2 * [49, 49, 42, 7, 7, 6]
    last = found.inside[5].view(7, 7)
    assert last[0, :6].all() and last.sum() == 6


@torch.no_grad()
def test_padded_queries_do_not_affect_the_output(randomized):
    """With one head; padded queries of an earlier head affect the padding of the next one."""
    attention = randomized(CascadedGroupAttention(16, 1, 8, 7, (3,), norm_cfg=dict(type='BN')),
                           gain=2).double()
    x = torch.randn(2, 16, 8, 20, dtype=torch.float64)
    found = capture_one(attention, x)
    maps = found.maps * found.inside[:, None, :, None]
    torch.testing.assert_close(our_output(attention, x, maps), attention(x), **TOLERANCE)


def test_padded_queries_of_swin():
    swin = pytest.importorskip('timm.models.swin_transformer', reason='needs timm')
    block = swin.SwinTransformerBlock(16, (8, 20), num_heads=2, window_size=7, shift_size=3).eval()
    found = capture_one(block, torch.randn(1, 8, 20, 16))
    assert found.inside.sum(1).tolist() == [49, 49, 42, 7, 7, 6]
    # Shifted: the last rows and columns are from the other side of the image, and masked.
    assert found.maps[2, 0, 0].view(7, 7)[0, 4:].max() < 1e-30


def test_models_without_maps_are_refused():
    cases = {'Conv2d has no attention blocks': nn.Conv2d(3, 3, 1)}
    deploy = EfficientViT('m0')
    deploy.deploy = True
    cases['deploy form'] = deploy
    for match, model in cases.items():
        with pytest.raises(UserError, match=match), capture_maps(model, print):
            pass


def test_attention_without_softmax_is_refused(monkeypatch):
    attention = CascadedGroupAttention(16, 2, 8, 7, (3, 3), norm_cfg=dict(type='BN'))
    monkeypatch.setattr(attention, 'forward', lambda x: x)
    with pytest.raises(UserError, match=r'2 heads, but its softmax outputs have the shapes \[\]'):
        capture_one(attention, torch.randn(1, 16, 7, 7))


def test_hooks_are_removed():
    attention = CascadedGroupAttention(16, 2, 8, 7, (3, 3), norm_cfg=dict(type='BN'))
    found = capture_one(attention, torch.randn(1, 16, 7, 7))
    assert not attention._forward_hooks and not attention._forward_pre_hooks
    found = []
    with pytest.raises(ZeroDivisionError), capture_maps(attention, found.append):
        raise ZeroDivisionError
    attention(torch.randn(2, 16, 7, 7))
    assert not found and not attention._forward_hooks
