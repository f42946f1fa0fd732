"""The deployed form gives what the plain one gives, takes every layout, and refuses to train."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from evit_mm.deployment.fuse import deploy
from evit_mm.errors import CheckpointError, ConfigError
from evit_mm.models import ARCHS, EfficientViT, EfficientViTFPN

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 2), num_heads=(2, 2, 4), key_dims=(4, 4, 4))


def randomise(model, seed=0):
    """Give every scale, shift, statistic and bias table a value that folding must carry over."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith('attention_biases'):
            nn.init.normal_(parameter, generator=generator)
    return model.eval()


def relative(found, expected):
    return max(((a.float() - b).abs().max() / b.abs().max()).item()
               for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('arch', [*ARCHS])
@torch.no_grad()
def test_outputs_stay(arch):
    plain = randomise(EfficientViT(arch, stem_strides=(4, 8)))
    deployed = copy.deepcopy(plain).switch_to_deploy()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in deployed.modules())
    for shape in ((2, 3, 97, 131), (1, 3, 224, 224), (1, 3, 1, 1)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        before = images.clone()
        expected = plain(images)
        assert relative(deployed(images), expected) < 1e-5
        assert torch.equal(images, before)
    images = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(2))
    expected, half = plain(images), deployed.bfloat16()(images.bfloat16())
    for found, wanted in zip(half, expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).norm() / wanted.norm() < 1e-2


def test_gradients_reach_the_image():
    """Saliency maps and attacks use them; nothing that they need may be overwritten."""
    plain = randomise(EfficientViT(TINY)).double()
    deployed = copy.deepcopy(plain).switch_to_deploy()
    image = torch.randn(1, 3, 70, 90, dtype=torch.double, requires_grad=True)
    gradients = [torch.autograd.grad(sum(x.square().sum() for x in model(image)), image)[0]
                 for model in (plain, deployed)]
    assert relative(gradients[1:], gradients[:1]) < 1e-6


@pytest.mark.parametrize('arch', [
    {}, dict(num_ffns=0), dict(num_ffns=2), dict(num_attentions=0), dict(num_attentions=2),
    dict(ffn_ratio=(1, 1.5, 3))], ids=str)
@torch.no_grad()
def test_custom_archs(arch):
    plain = randomise(EfficientViT({**TINY, **arch}, window_sizes=(7, 5, 3)))
    deployed = EfficientViT({**TINY, **arch}, window_sizes=(7, 5, 3), deploy=True)
    deployed.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 97, 131)
    assert relative(deployed(images), plain(images)) < 1e-5


@pytest.mark.parametrize('window', [1, 2, 8, 9])
@torch.no_grad()
def test_windows(window):
    """Up to 8 the query's convolutions are matrices, beyond they stay convolutions."""
    plain = randomise(EfficientViT(TINY, window_sizes=window))
    deployed = copy.deepcopy(plain).switch_to_deploy()
    constants = deployed.stages[0].blocks[0].attn.query_matrices
    assert (constants is None) == (window > 8)
    images = torch.randn(2, 3, 290, 131)
    assert relative(deployed(images), plain(images)) < 1e-5


def edited(deployed, other):
    """Change weights in place, one by one."""
    for parameter, value in zip(deployed.parameters(), other.parameters(), strict=True):
        parameter.copy_(value)


def loaded(deployed, other):
    deployed.load_state_dict(other.state_dict())


def moved(deployed, other):
    loaded(deployed, other)
    deployed.double().float()


@pytest.mark.parametrize('change', [edited, loaded, moved])
@torch.no_grad()
def test_constants_follow_the_weights(change):
    """No output may mix new weights with what was computed from old ones."""
    deployed = randomise(EfficientViT(TINY)).switch_to_deploy()
    other = randomise(EfficientViT(TINY), seed=1).switch_to_deploy()
    images, first = torch.randn(1, 3, 97, 131), copy.deepcopy(deployed)
    before, expected = deployed(images), other(images)
    change(deployed, other)
    assert relative(deployed(images), expected) < 1e-6 < relative(before, expected)
    twin = copy.deepcopy(deployed)
    loaded(twin, first)
    assert relative(twin(images), before) < 1e-6
    assert relative(deployed(images), expected) < 1e-6
    assert not [key for key in deployed.state_dict() if 'query_matrices' in key]


@torch.no_grad()
def test_a_compiled_graph_takes_the_constants():
    """What a graph reads when it is traced is right without a run before it, and after a load."""
    deployed = randomise(EfficientViT(TINY)).switch_to_deploy()
    other = randomise(EfficientViT(TINY), seed=1)
    loaded(deployed, copy.deepcopy(other).switch_to_deploy())
    torch.compiler.reset()
    compiled = torch.compile(deployed, backend='eager', fullgraph=True)
    images = torch.randn(1, 3, 97, 131)
    assert relative(compiled(images), other(images)) < 1e-5


@torch.no_grad()
def test_another_normalisation_stays():
    plain = randomise(EfficientViT(TINY, norm_cfg=dict(type='GN', num_groups=2)))
    deployed = copy.deepcopy(plain).switch_to_deploy()
    images = torch.randn(1, 3, 97, 131)
    assert relative(deployed(images), plain(images)) < 1e-5


@torch.no_grad()
def test_switching_twice_is_switching_once():
    deployed = randomise(EfficientViT(TINY)).switch_to_deploy()
    images = torch.randn(1, 3, 64, 64)
    expected = deployed(images)
    assert relative(deployed.switch_to_deploy()(images), expected) == 0
    assert relative(deploy(deployed)(images), expected) == 0


@torch.no_grad()
def test_weights_of_either_form_go_in():
    plain = randomise(EfficientViT(TINY))
    folded = copy.deepcopy(plain).switch_to_deploy()
    images = torch.randn(1, 3, 64, 64)
    for state in (plain.state_dict(), folded.state_dict()):
        detector = nn.ModuleDict(dict(backbone=EfficientViT(TINY, deploy=True)))
        detector.load_state_dict({f'backbone.{key}': value for key, value in state.items()})
        assert relative(detector['backbone'](images), folded(images)) == 0


@torch.no_grad()
def test_pretrained_weights_go_in(tmp_path):
    plain = randomise(EfficientViT(TINY))
    torch.save(plain.state_dict(), tmp_path / 'weights.pth')
    deployed = EfficientViT(TINY, deploy=True, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    deployed.init_weights()
    images = torch.randn(1, 3, 64, 64)
    assert relative(deployed(images), plain(images)) < 1e-5


def test_weights_that_do_not_fit_are_told():
    other = EfficientViT({**TINY, 'depths': (1, 1, 1)}).state_dict()
    with pytest.raises(CheckpointError, match='missing'):
        EfficientViT(TINY, deploy=True).load_state_dict(other)
    folded = EfficientViT(TINY, deploy=True).state_dict()
    with pytest.raises(CheckpointError, match='missing'):
        EfficientViT(TINY).load_state_dict(folded)


def test_training_is_refused():
    model = EfficientViT(TINY)
    with pytest.raises(ConfigError, match=r'call eval\(\) first'):
        model.switch_to_deploy()
    with pytest.raises(ConfigError, match=r'call eval\(\)'):
        deploy(nn.Sequential(model))
    with pytest.raises(ConfigError, match=r'call eval\(\) first'):
        EfficientViTFPN([8, 16]).switch_to_deploy()
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
    model = randomise(nn.ModuleDict(dict(backbone=backbone, neck=neck, heads=nn.ModuleList(heads),
                                         backward=backward)))

    def run():
        levels = model['neck'](model['backbone'](images))
        return [*levels, *(head(levels[0]) for head in model['heads']),
                model['backward'](levels[1])]

    images = torch.randn(1, 3, 97, 131)
    expected = run()
    assert deploy(model) is model
    left = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ['backward.bn']  # it stands before its convolution, not behind
    assert relative(run(), expected) < 1e-5
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
