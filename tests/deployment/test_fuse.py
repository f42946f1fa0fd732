"""The deployed form has the outputs of the plain one, loads every layout, and refuses to train."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from random_models import TINY, randomize, relative_error
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evit_mm.deployment import deploy
from evit_mm.errors import CheckpointError, ConfigError
from evit_mm.models import ARCHS, EfficientViT, EfficientViTFPN


@pytest.mark.parametrize('arch', [*ARCHS])
@torch.no_grad()
def test_outputs_stay_the_same(arch):
    plain = randomize(EfficientViT(arch, stem_strides=(4, 8))).eval()
    deployed = copy.deepcopy(plain).switch_to_deploy()
    assert not any(isinstance(m, _BatchNorm) for m in deployed.modules())
    for shape in ((2, 3, 97, 131), (1, 3, 224, 224), (1, 3, 1, 1)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        before = images.clone()
        expected = plain(images)
        assert relative_error(deployed(images), expected) < 1e-5
        assert torch.equal(images, before)
    images = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(2))
    expected, half = plain(images), deployed.bfloat16()(images.bfloat16())
    for rounded, exact in zip(half, expected, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).norm() / exact.norm() < 1e-2


def test_gradients_reach_the_image():
    """Saliency maps and attacks use them; nothing that they need may be overwritten."""
    plain = randomize(EfficientViT(TINY)).eval().double()
    deployed = copy.deepcopy(plain).switch_to_deploy()
    image = torch.randn(1, 3, 70, 90, dtype=torch.double, requires_grad=True)
    gradients = [torch.autograd.grad(sum(x.square().sum() for x in model(image)), image)[0]
                 for model in (plain, deployed)]
    assert relative_error(gradients[1:], gradients[:1]) < 1e-6


@pytest.mark.parametrize('arch', [
    {}, dict(num_ffns=0), dict(num_ffns=2), dict(num_attentions=0), dict(num_attentions=2),
    dict(ffn_ratio=(1, 1.5, 3))], ids=str)
@torch.no_grad()
def test_custom_archs(arch):
    plain = randomize(EfficientViT({**TINY, **arch}, window_sizes=(7, 5, 3))).eval()
    deployed = EfficientViT({**TINY, **arch}, window_sizes=(7, 5, 3), deploy=True)
    deployed.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 97, 131)
    assert relative_error(deployed(images), plain(images)) < 1e-5


@pytest.mark.parametrize('window', [1, 2, 8, 9])
@torch.no_grad()
def test_windows_of_any_size(window):
    plain = randomize(EfficientViT(TINY, window_sizes=window)).eval()
    deployed = copy.deepcopy(plain).switch_to_deploy()
    images = torch.randn(2, 3, 290, 131)
    assert relative_error(deployed(images), plain(images)) < 1e-5


@torch.no_grad()
def test_weights_may_change_afterwards():
    """Nothing is computed from weights once and kept."""
    deployed = randomize(EfficientViT(TINY)).eval().switch_to_deploy()
    other = randomize(EfficientViT(TINY), seed=1).eval().switch_to_deploy()
    images = torch.randn(1, 3, 97, 131)
    before, expected = deployed(images), other(images)
    deployed.load_state_dict(other.state_dict())
    assert relative_error(deployed(images), expected) == 0
    assert relative_error(before, expected) > 1e-3


@torch.no_grad()
def test_compiles_in_one_graph():
    deployed = randomize(EfficientViT(TINY)).eval().switch_to_deploy()
    torch.compiler.reset()
    compiled = torch.compile(deployed, backend='eager', fullgraph=True)
    images = torch.randn(1, 3, 97, 131)
    assert relative_error(compiled(images), deployed(images)) < 1e-5


@torch.no_grad()
def test_another_normalisation_stays():
    plain = randomize(EfficientViT(TINY, norm_cfg=dict(type='GN', num_groups=2))).eval()
    deployed = copy.deepcopy(plain).switch_to_deploy()
    images = torch.randn(1, 3, 97, 131)
    assert relative_error(deployed(images), plain(images)) < 1e-5


@torch.no_grad()
def test_switching_twice_is_switching_once():
    deployed = randomize(EfficientViT(TINY)).eval().switch_to_deploy()
    images = torch.randn(1, 3, 64, 64)
    expected = deployed(images)
    assert relative_error(deployed.switch_to_deploy()(images), expected) == 0
    assert relative_error(deploy(deployed)(images), expected) == 0


@torch.no_grad()
def test_loads_weights_of_either_form():
    plain = randomize(EfficientViT(TINY)).eval()
    folded = copy.deepcopy(plain).switch_to_deploy()
    images = torch.randn(1, 3, 64, 64)
    for state in (plain.state_dict(), folded.state_dict()):
        detector = nn.ModuleDict(dict(backbone=EfficientViT(TINY, deploy=True)))
        detector.load_state_dict({f'backbone.{key}': value for key, value in state.items()})
        assert relative_error(detector['backbone'](images), folded(images)) == 0


@torch.no_grad()
def test_loads_pretrained_weights(tmp_path):
    plain = randomize(EfficientViT(TINY)).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = plain(images)
    for form in (plain, copy.deepcopy(plain).switch_to_deploy()):
        torch.save(form.state_dict(), tmp_path / 'weights.pth')
        deployed = EfficientViT(TINY, deploy=True, init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
        deployed.init_weights()
        assert relative_error(deployed(images), expected) < 1e-5


def test_weights_that_do_not_fit_are_refused():
    other = EfficientViT({**TINY, 'depths': (1, 1, 1)}).state_dict()
    with pytest.raises(CheckpointError, match='missing'):
        EfficientViT(TINY, deploy=True).load_state_dict(other)
    folded = EfficientViT(TINY, deploy=True).state_dict()
    with pytest.raises(CheckpointError, match='is of the deployed form'):
        EfficientViT(TINY).load_state_dict(folded)


def test_training_is_refused():
    model = EfficientViT(TINY)
    with pytest.raises(ConfigError, match=r'call eval\(\)'):
        model.switch_to_deploy()
    with pytest.raises(ConfigError, match=r'call eval\(\)'):
        deploy(nn.Sequential(model))
    with pytest.raises(ConfigError, match=r'call eval\(\)'):
        deploy(EfficientViTFPN([8, 16]))
    model.eval().switch_to_deploy()
    with pytest.raises(ConfigError, match="can't be trained"):
        model.train()


@torch.no_grad()
def test_necks_and_heads_fold():
    torch.manual_seed(0)
    backbone = EfficientViT(TINY)
    neck = EfficientViTFPN(backbone.out_channels, 16, num_extra_trans_convs=1,
                           norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
    shared = nn.Conv2d(16, 8, 3, padding=1, bias=False)
    heads = [ConvModule(16, 8, 3, padding=1, norm_cfg=dict(type='BN')) for _ in range(2)]
    for head in heads:
        head.conv = shared  # as RetinaSepBNHead does
    backward = ConvModule(16, 8, 1, norm_cfg=dict(type='BN'), order=('norm', 'conv', 'act'))
    model = randomize(nn.ModuleDict(dict(backbone=backbone, neck=neck, heads=nn.ModuleList(heads),
                                         backward=backward))).eval()

    def run():
        levels = model['neck'](model['backbone'](images))
        return [*levels, *(head(levels[0]) for head in model['heads']),
                model['backward'](levels[1])]

    images = torch.randn(1, 3, 97, 131)
    expected = run()
    assert deploy(model) is model
    left = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ['backward.bn']  # it stands before its convolution, not behind
    assert relative_error(run(), expected) < 1e-5
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in run())


def test_a_module_that_can_switch_is_left_to_itself():
    class Switched(nn.Module):
        def __init__(self, *parts):
            super().__init__()
            self.parts, self.switches = nn.ModuleList(parts), 0

        def switch_to_deploy(self):
            self.switches += 1

    inner, other = Switched(), Switched()
    outer = Switched(inner, ConvModule(3, 4, 1, norm_cfg=dict(type='BN')))
    deploy(nn.Sequential(outer, nn.Sequential(nn.ReLU(), other)).eval())
    assert (outer.switches, inner.switches, other.switches) == (1, 0, 1)
    assert isinstance(outer.parts[1].bn, nn.BatchNorm2d)


@torch.no_grad()
def test_a_layer_alone_gives_its_replacement():
    block = randomize(EfficientViT(TINY)).eval().stages[0].blocks[0]
    x = torch.randn(1, 16, 9, 10)
    expected = block(x)
    deployed = deploy(block)
    assert deployed is not block
    assert relative_error([deployed(x)], [expected]) < 1e-5


def test_bn_without_running_statistics_is_refused():
    model = EfficientViT(TINY, norm_cfg=dict(type='BN', track_running_stats=False)).eval()
    with pytest.raises(ConfigError, match='track_running_stats'):
        deploy(model)


@torch.no_grad()
def test_shared_layers_are_folded_once():
    block = randomize(EfficientViT(TINY)).eval().stages[0].blocks[0]
    model = nn.Sequential(block, nn.Sequential(block)).eval()
    x = torch.randn(1, 16, 9, 10)
    expected = model(x)
    assert relative_error([deploy(model)(x)], [expected]) < 1e-5


def test_nothing_changes_before_every_bn_is_checked():
    model = randomize(EfficientViT(TINY)).eval()
    before = copy.deepcopy(model.state_dict())
    model.stages[-1].blocks[0].ffn1.expand.norm.train()
    with pytest.raises(ConfigError, match=r'ffn1.expand.norm is in training mode'):
        deploy(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
