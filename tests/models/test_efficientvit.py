"""The backbone: exact, sound, and clear about what it does not take."""

import copy

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from random_models import randomize, relative_error

from evit_mm.errors import ConfigError
from evit_mm.models import ARCHS, EfficientViT

TORCH = tuple(map(int, torch.__version__.split('.')[:2]))
TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2), key_dims=(8, 8, 8))
DEVICES = ['cpu', pytest.param('cuda', marks=[pytest.mark.cuda, pytest.mark.skipif(
    not torch.cuda.is_available(), reason='no CUDA GPU')])]


def map_error(actual, expected) -> float:
    return relative_error([actual], [expected])


@pytest.mark.parametrize('arch', ARCHS)
def test_recorded_outputs(arch, golden):
    model = EfficientViT(arch).eval()
    state = {key: torch.from_numpy(np.asarray(value))
             for key, value in golden.official_state(arch).items()}
    model.load_state_dict(state)  # strict: every key is explained
    recorded = np.load(golden.HERE / f'{arch}.npz')
    for size in ('1x448x448', '2x512x640'):
        image = torch.from_numpy(golden.pattern(*map(int, size.split('x'))))
        with torch.no_grad():
            maps = model(image)
            exact = copy.deepcopy(model).double()(image.double())
        assert len(maps) == 3
        for level, feature in enumerate(maps):
            some = torch.from_numpy(recorded[f'{size}_level{level}'])
            mean = torch.from_numpy(recorded[f'{size}_level{level}_mean'])
            step = feature.shape[1] // some.shape[1]
            assert feature.shape == tuple(recorded[f'{size}_level{level}_shape']) or \
                feature.shape[:3] == tuple(recorded[f'{size}_level{level}_shape'])[:3]
            # What is computed, apart from rounding: the same on every machine. The recording is
            # in float32, which M5's filled weights amplify.
            some_exact = exact[level][:, ::step][:, :some.shape[1]]
            assert map_error(some_exact, some) < (4.5e-4 if arch == 'm5' else 1e-5)
            assert map_error(exact[level].mean((2, 3)), mean) < 1e-5
            # Rounding, in another order with each version of torch and number of threads.
            rounding = 2e-3 if arch == 'm5' else 1e-5
            assert map_error(feature[:, ::step][:, :some.shape[1]], some) < rounding
            assert map_error(feature.mean((2, 3)), mean) < (5e-5 if arch == 'm5' else 1e-5)


@pytest.mark.parametrize('arch,millions', [('m0', 2.3), ('m1', 3.0), ('m2', 4.2), ('m3', 6.9),
                                           ('m4', 8.8), ('m5', 12.4)])
def test_published_sizes(arch, millions):
    backbone = sum(p.numel() for p in EfficientViT(arch).parameters())
    width = ARCHS[arch].embed_dims[-1]
    classifier = 2 * width + 1000 * width + 1000  # BN and linear layer, not built here
    tables = 33 * sum(ARCHS[arch].num_heads[2] for _ in range(ARCHS[arch].depths[2]))
    assert (backbone + classifier - tables) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('height,width', [(32, 32), (33, 1000), (224, 224), (65, 129), (1, 1)])
def test_any_size(device, height, width):
    model = EfficientViT(TINY, stem_strides=(4, 8)).eval().to(device)
    with torch.no_grad():
        maps = model(torch.randn(2, 3, height, width, device=device))
    assert model.out_strides == (4, 8, 16, 32, 64)
    assert model.out_channels == (4, 8, 16, 24, 32)
    for feature, stride, channels in zip(maps, model.out_strides, model.out_channels, strict=True):
        assert feature.shape == (2, channels, -(-height // stride), -(-width // stride))
        assert feature.isfinite().all()


@pytest.mark.parametrize('device', DEVICES)
@torch.no_grad()
def test_layouts_and_precisions_agree(device):
    model = randomize(EfficientViT(TINY)).eval().to(device)
    image = torch.randn(2, 3, 97, 130, device=device)
    expected = model(image)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for a, b in zip(last(image.contiguous(memory_format=torch.channels_last)), expected,
                    strict=True):
        assert map_error(a, b) < 1e-5
    with torch.autocast(device, dtype=torch.bfloat16):
        autocast = model(image)
    half = copy.deepcopy(model).bfloat16()(image.bfloat16())
    double = copy.deepcopy(model).double()(image.double())
    for a, b, c, d in zip(autocast, half, double, expected, strict=True):
        assert map_error(a, d) < 5e-2
        assert b.dtype == torch.bfloat16 and map_error(b, d) < 5e-2
        assert c.dtype == torch.float64 and map_error(c, d) < 1e-5


@torch.no_grad()
def test_stem_features_are_the_stems():
    model = randomize(EfficientViT(TINY, stem_strides=(4,), out_indices=(0,))).eval()
    image = torch.randn(1, 3, 64, 64)
    x = image
    for layer in list(model.stem)[:2]:
        x = torch.relu(layer(x))
    assert torch.equal(model(image)[0], x)


def test_later_stages_are_not_built():
    model = EfficientViT(TINY, out_indices=(0, 1))
    whole = randomize(EfficientViT(TINY)).eval()
    assert len(model.stages) == 2
    model.load_state_dict(whole.state_dict())  # the rest is dropped, not an error
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(model.eval()(image), whole(image)[:2], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize('options', [dict(), dict(out_indices=(1,)), dict(norm_eval=True),
                                     dict(with_cp=True), dict(stem_strides=(4, 8))])
def test_every_trainable_parameter_gets_a_gradient(options):
    model = randomize(EfficientViT(TINY, **options)).train()
    sum(x.square().mean() for x in model(torch.randn(2, 3, 128, 128))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith('stem.0.conv.bias'), name


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 3])
def test_freezes_exactly_what_it_says(frozen):
    model = EfficientViT(TINY, frozen_stages=frozen).train()
    parts = [model.stem, *model.stages]
    for index, part in enumerate(parts):
        is_frozen = index <= frozen
        assert all(p.requires_grad != is_frozen for p in part.parameters())
        assert all(m.training != is_frozen for m in part.modules())
    model.eval()
    assert not any(m.training for m in model.modules())


def test_norm_eval_keeps_statistics_and_trains_scales():
    model = randomize(EfficientViT(TINY, norm_eval=True)).train()
    before = copy.deepcopy(model.state_dict())
    sum(x.mean() for x in model(torch.randn(2, 3, 64, 64))).backward()
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if 'running' in key)
    assert model.stem[0].norm.weight.grad is not None
    learning = EfficientViT(TINY).train()
    learning(torch.randn(2, 3, 64, 64))
    assert not torch.equal(learning.stem[0].norm.running_mean, torch.zeros(2))


def test_recomputing_activations_changes_nothing():
    plain = randomize(EfficientViT(TINY)).train()
    saving = EfficientViT(TINY, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 96, 128)
    for model in (plain, saving):
        sum(x.square().mean() for x in model(image)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name  # statistics count once, not twice


def test_drop_path_drops_in_training_only():
    model = randomize(EfficientViT(TINY, drop_path_rate=0.9))
    image = torch.randn(4, 3, 64, 64)
    rates = [getattr(stage.blocks[0].drop_path, 'drop_prob', 0.0) for stage in model.stages]
    assert rates == pytest.approx([0.0, 0.45, 0.9])
    with torch.no_grad():
        assert not torch.equal(model.train()(image)[-1], model(image)[-1])
        assert torch.equal(model.eval()(image)[-1], model(image)[-1])


# None, torch's default, makes one graph for all sizes after the first, which takes half a minute.
SIZES = pytest.mark.parametrize('dynamic', [False, pytest.param(None, marks=pytest.mark.slow)])


@SIZES
def test_compiles_in_one_graph(dynamic):
    # The graph is captured in full, as with any backend; 'eager' needs no C++ compiler to run it.
    model = randomize(EfficientViT(TINY)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend='eager')
    with torch.no_grad():
        for shape in ((1, 3, 65, 97), (2, 3, 128, 64)):
            image = torch.randn(shape)
            for a, b in zip(compiled(image), model(image), strict=True):
                assert map_error(a, b) < 1e-5


@pytest.mark.skipif(TORCH < (2, 11), reason='torch 2.6 can\'t compile hooks on gradients')
@SIZES
@pytest.mark.parametrize('norm_eval', [True, False])
def test_compiles_with_recomputed_activations(norm_eval, dynamic):
    model = randomize(EfficientViT(TINY, with_cp=True, norm_eval=norm_eval)).train()
    plain = copy.deepcopy(model)
    image = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend='eager')
    sum(x.square().mean() for x in compiled(image)).backward()
    sum(x.square().mean() for x in plain(image)).backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, a), b in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b[1], msg=name)


def test_copies_and_averages_load_their_own_weights():
    """EMA copies the model; the copy must fill itself, not the original."""
    model = EfficientViT(TINY)
    average = copy.deepcopy(model)
    state = randomize(EfficientViT(TINY, window_sizes=8)).state_dict()
    before = copy.deepcopy(model.state_dict())
    average.load_state_dict(state)
    assert torch.equal(average.stem[0].conv.weight, state['stem.0.conv.weight'])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize('window', [4, 8, (7, 7, 4)])
def test_windows_of_other_sizes_take_the_same_weights(window):
    model = EfficientViT('m0', window_sizes=window).eval()
    model.load_state_dict(EfficientViT('m0').state_dict())
    sides = [stage.blocks[0].attn.attention_biases.shape[1] ** 0.5 for stage in model.stages]
    assert tuple(sides) == ((window,) * 3 if isinstance(window, int) else window)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64))[-1].shape == (1, 192, 1, 1)


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', dict(type='GN', num_groups=2)])
def test_norm_cfg(norm):
    norm_cfg = norm if isinstance(norm, dict) else dict(type=norm, requires_grad=True)
    model = EfficientViT(TINY, norm_cfg=norm_cfg)
    kind = type(model.stages[0].blocks[0].dw_conv1.norm).__name__
    assert kind == {'BN': 'BatchNorm2d', 'SyncBN': 'SyncBatchNorm'}.get(str(norm), 'GroupNorm')


def test_one_class_for_every_sibling():
    import mmdet.registry
    import mmseg.registry

    for registry in (MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS):
        assert isinstance(registry.build(dict(type='EfficientViT', arch='m0')), EfficientViT)


@pytest.mark.parametrize('options,fragments', [
    (dict(arch='m6'), ['m6', 'm0', 'm5']),
    (dict(arch='b0'), ['b0', 'm4']),
    (dict(arch=7), ['7']),
    (dict(arch=dict(embed_dims=(8, 16, 24))), ['missing', 'depths', 'num_heads']),
    (dict(arch={**TINY, 'heads': 1}), ['heads']),
    (dict(arch={**TINY, 'num_heads': (3, 2, 2)}), ['16', '3']),
    (dict(arch={**TINY, 'embed_dims': (20, 24, 32)}), ['20', '8']),
    (dict(arch={**TINY, 'embed_dims': (16, 24)}), ['(16, 24)', '3']),
    (dict(arch={**TINY, 'depths': (1, 0, 1)}), ['(1, 0, 1)']),
    (dict(arch={**TINY, 'kernel_sizes': (4, 3)}), ['(4, 3)', 'odd']),
    (dict(arch={**TINY, 'kernel_sizes': (3,)}), ['(3,)']),
    (dict(out_indices=(0, 3)), ['(0, 3)', '[0, 1, 2]']),
    (dict(out_indices=(1, 0)), ['(1, 0)']),
    (dict(out_indices=()), ['empty']),
    (dict(stem_strides=(2,)), ['(2,)', '4', '8']),
    (dict(frozen_stages=4), ['4', '-1']),
    (dict(window_sizes=0), ['0']),
    (dict(window_sizes=(7, 7)), ['(7, 7)', '3']),
    (dict(drop_path_rate=1.0), ['1.0']),
    (dict(drop_path_rate='a'), ["'a'"]),
    (dict(window_sizes=7.5), ['7.5']),
    (dict(out_indices=None), ['out_indices=None']),
    (dict(arch={**TINY, 'depths': 3}), ['depths=3']),
    (dict(arch={**TINY, 'embed_dims': 'abc'}), ["embed_dims='abc'"]),
    (dict(norm_cfg='BN'), ["norm_cfg='BN'", 'dict']),
    (dict(init_cfg='x.pth'), ["dict(type='Pretrained', checkpoint='x.pth')"]),
])
def test_bad_values_name_themselves_and_the_choices(options, fragments):
    with pytest.raises(ConfigError) as error:
        EfficientViT(**options)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)
