"""Every tensor of a checkpoint is loaded, resized, dropped by name, or reported as an error."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import nn

from evit_mm.checkpoint import (
    LAYOUTS,
    MICROSOFT,
    TIMM,
    load_backbone_weights,
    resize_attention_biases,
)
from evit_mm.errors import CheckpointError, MissingCheckpointError
from evit_mm.models import ARCHS, EfficientViT


def randomize(model):
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)
    return model


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def as_published(model, windows=(7, 7, 4)):
    """Return the checkpoint of the reference for these weights, with its additional entries."""
    small = EfficientViT(model.arch, window_sizes=windows)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key, value in small.state_dict().items():
        if state[key].shape != value.shape:
            state[key] = torch.randn(value.shape)
    published = {MICROSOFT.published_key(key): value for key, value in state.items()}
    for key in [key for key in published if key.endswith('attention_biases')]:
        entries = published[key].shape[1]
        published[key.replace('biases', 'bias_idxs')] = torch.zeros(entries, entries).long()
    published.update({'head.l.weight': torch.zeros(1000, 8), 'head.l.bias': torch.zeros(1000)})
    return published


def fuse(published):
    """Return a fused export of a published checkpoint: convolutions with a bias instead of BN."""
    fused = {}
    for key, value in published.items():
        if key.endswith('.c.weight'):
            fused[key.replace('.c.', '.')] = value
            fused[key.replace('.c.weight', '.bias')] = torch.zeros(len(value))
        elif '.bn.' not in key:
            fused[key] = value
    return fused


@pytest.fixture(scope='module')
def source():
    """An M0 with random weights; tests only read it."""
    return randomize(EfficientViT('m0'))


@pytest.fixture(scope='module')
def published(source):
    """Its published checkpoint."""
    return as_published(source)


@pytest.mark.parametrize('arch', ARCHS)
def test_microsoft_layout_covers_the_published_names(arch, golden):
    official = golden.official_state(arch)
    ours = EfficientViT(arch, window_sizes=(7, 7, 4)).state_dict()
    table = MICROSOFT.table(ours)
    assert len(table) == len(ours)  # no two tensors have the same name
    for key, name in table.items():
        assert official[key].shape == tuple(ours[name].shape), (key, name)
    rest = set(official) - set(table)
    assert rest and all(MICROSOFT.is_dropped(key, 3) for key in rest)


@pytest.mark.parametrize('wrap', [
    lambda state: state,
    lambda state: {'model': state, 'epoch': 300},
    lambda state: {'state_dict': state, 'meta': {}},
    lambda state: {'state_dict': {f'module.{key}': value for key, value in state.items()}},
    lambda state: {'state_dict': {f'backbone.{key}': value for key, value in state.items()}
                   | {'neck.lateral_convs.0.conv.weight': torch.zeros(1)}},
])
def test_containers_and_prefixes(wrap, source, published):
    target = EfficientViT('m0')
    report = load_backbone_weights(target, wrap(published), source='file')
    assert report.layout == 'Microsoft' and report.complete
    assert len(report.loaded) == len(target.state_dict())
    assert len(report.resized) == 3 and all('16 -> 49' in text for text in report.resized)
    loaded = target.state_dict()
    for key, value in source.state_dict().items():
        if not (key.endswith('attention_biases') and key.startswith('stages.2')):
            assert torch.equal(loaded[key], value), key


def test_bias_tables_are_resized_as_images():
    table = torch.randn(4, 16)
    resized = resize_attention_biases(table, 7)
    expected = F.interpolate(table.view(4, 1, 4, 4), size=(7, 7), mode='bicubic',
                             align_corners=False).view(4, 49)
    torch.testing.assert_close(resized, expected)
    assert resize_attention_biases(resized, 7) is resized
    assert resize_attention_biases(table.half(), 8).dtype == torch.float16
    constant = resize_attention_biases(torch.full((2, 49), 3.0), 8)
    torch.testing.assert_close(constant, torch.full((2, 64), 3.0))


def test_mmengine_loads_published_layout_into_a_detector(source, tmp_path):
    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = EfficientViT('m0')
            self.neck = nn.Linear(1, 1)

    neck = nn.Linear(1, 1).state_dict()
    torch.save({'state_dict': {
        **{f'backbone.{key}': value for key, value in as_published(source, (7, 7, 7)).items()},
        **{f'neck.{key}': value for key, value in neck.items()}}}, tmp_path / 'a.pth')
    detector = Detector()
    load_checkpoint(detector, str(tmp_path / 'a.pth'), strict=True)
    for module, state in ((detector.backbone, source.state_dict()), (detector.neck, neck)):
        assert_equal(module.state_dict(), state)


def test_init_cfg_loads_and_reports(source, published, tmp_path, monkeypatch):
    torch.save({'model': published}, tmp_path / 'm0.pth')
    model = EfficientViT('m0', init_cfg=dict(type='Pretrained',
                                             checkpoint=str(tmp_path / 'm0.pth')))
    logged = []
    monkeypatch.setattr('evit_mm.models.efficientvit.print_log',
                        lambda text, **_: logged.append(text))
    model.init_weights()
    assert len(logged) == 1 and 'Microsoft layout: 686 tensors loaded (3 of them resized), ' \
        '8 dropped, 0 missing' in logged[0]
    key = 'stages.1.downsample.merging.squeeze_excite.reduce.bias'
    assert torch.equal(model.state_dict()[key], source.state_dict()[key])


@pytest.mark.parametrize('prefix', ['teacher.backbone', 'teacher.backbone.'])
def test_init_cfg_accepts_a_prefix_and_a_list(tmp_path, prefix, source, published):
    torch.save({f'teacher.backbone.{key}': value for key, value in published.items()},
               tmp_path / 'teacher.pth')
    model = EfficientViT('m0', init_cfg=[dict(
        type='Pretrained', checkpoint=str(tmp_path / 'teacher.pth'), prefix=prefix)])
    model.init_weights()
    assert torch.equal(model.stem[0].conv.weight, source.stem[0].conv.weight)


def test_mmengine_does_not_continue_with_an_incomplete_backbone(tmp_path):
    """On its own it only logs what does not fit."""
    torch.save(as_published(EfficientViT('m4')), tmp_path / 'm4.pth')
    with pytest.raises(CheckpointError, match='look like m4 in the Microsoft layout'):
        load_checkpoint(EfficientViT('m0'), str(tmp_path / 'm4.pth'))


def test_unexpected_missing_and_mismatched_tensors_are_errors(published):
    target = EfficientViT('m0')
    before = {key: value.clone() for key, value in target.state_dict().items()}

    def assert_error(state, *fragments):
        with pytest.raises(CheckpointError) as error:
            load_backbone_weights(target, state, source='some.pth')
        assert all(fragment in str(error.value) for fragment in ('some.pth', *fragments)), error
        assert_equal(target.state_dict(), before)  # all or nothing

    assert_error({**published, 'blocks1.0.surprise': torch.zeros(1)}, 'unexpected',
                 'blocks1.0.surprise')
    key = 'patch_embed.0.c.weight'
    assert_error({k: v for k, v in published.items() if k != key}, 'missing', 'stem.0.conv.weight')
    assert_error({**published, key: torch.zeros(9, 3, 3, 3)}, '(9, 3, 3, 3)', '(8, 3, 3, 3)')
    assert_error({**published, 'blocks1.0.mixer.m.attn.attention_biases': torch.zeros(4, 48)},
                 '(4, 48)')
    assert_error({'fc.weight': torch.zeros(1)}, 'fc.weight', 'missing')


def test_error_names_another_variant(tmp_path):
    torch.save({'model': as_published(EfficientViT('m2'))}, tmp_path / 'x.pth')
    model = EfficientViT('m4', init_cfg=dict(type='Pretrained',
                                             checkpoint=str(tmp_path / 'x.pth')))
    with pytest.raises(CheckpointError, match='looks like m2 in the Microsoft layout'):
        model.init_weights()


def test_error_names_another_variant_in_timms_layout():
    state = {TIMM.published_key(key): value
             for key, value in EfficientViT('m3').state_dict().items()}
    with pytest.raises(CheckpointError, match='looks like m3 in the timm layout'):
        load_backbone_weights(EfficientViT('m4'), state, source='x')
    with pytest.raises(CheckpointError, match='look like m3 in the timm layout'):
        EfficientViT('m4').load_state_dict(state)


def test_init_cfg_with_a_missing_file(tmp_path):
    model = EfficientViT('m0', init_cfg=dict(type='Pretrained', checkpoint='gone.pth'))
    with pytest.raises(MissingCheckpointError, match=r'^no such file: gone\.pth$'):
        model.init_weights()


@pytest.mark.parametrize('wrap', [
    lambda state: {'model': {}, 'model_ema': state},
    lambda state: {'state_dict_ema': {f'module.{key}': value for key, value in state.items()}},
    lambda state: {f'module._orig_mod.{key}': value for key, value in state.items()},
    lambda state: {f'encoder.{key}': value for key, value in state.items()} | {
        'decoder.weight': torch.zeros(1)},
])
@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_in_every_container(layout, wrap, source):
    target = EfficientViT('m0')
    state = {layout.published_key(key): value for key, value in source.state_dict().items()}
    report = load_backbone_weights(target, wrap(state), source='file')
    assert report.layout == layout.name and report.complete and not report.resized
    assert_equal(target.state_dict(), source.state_dict())


def test_report_names_dropped_keys(published):
    report = load_backbone_weights(EfficientViT('m0', out_indices=(0, 1)), published,
                                   source='file')
    assert 'dropped: ' in str(report)
    for fragment in ('head.*', '*.attention_bias_idxs', 'blocks3.*'):
        assert fragment in str(report)


def test_two_backbones_need_a_prefix(published):
    both = {f'{name}.backbone.{key}': value for name in ('student', 'teacher')
            for key, value in published.items()}
    with pytest.raises(CheckpointError, match="2 backbones.*prefix=.*'teacher.backbone.'"):
        load_backbone_weights(EfficientViT('m0'), both, source='file')
    assert load_backbone_weights(EfficientViT('m0'), both, source='file',
                                 prefix='teacher.backbone').complete


def test_fused_exports_are_refused(published, tmp_path):
    fused = fuse(published)
    torch.save({'model': fused}, tmp_path / 'fused.pth')
    model = EfficientViT('m0', init_cfg=dict(type='Pretrained',
                                             checkpoint=str(tmp_path / 'fused.pth')))
    reason = 'is a fused export in the Microsoft layout.*checkpoint that it was made from, ' \
        'or published weights .evit://efficientvit_m0'
    with pytest.raises(CheckpointError, match=f'fused.pth {reason}'):
        model.init_weights()
    detector = BaseModule()
    detector.backbone = EfficientViT('m0')
    with pytest.raises(CheckpointError, match=f'EfficientViT at backbone .*{reason}'):
        detector.load_state_dict({f'backbone.{key}': value for key, value in fused.items()})
