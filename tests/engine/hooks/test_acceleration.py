"""Deploy form, memory layout, compilation and bfloat16 in whole runs and on small models."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch._inductor import config as inductor

from evit_mm.deployment.compile import check_compiler, compiled
from evit_mm.engine.hooks import acceleration
from evit_mm.engine.hooks.acceleration import Acceleration, AccelerationHook, accelerate
from evit_mm.errors import ConfigError, UserError


class Detector(nn.Module):
    """Module with parts named as a detector's, a head in a list, and a bottleneck."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
        self.bottleneck = nn.Conv2d(8, 8, 1)
        self.bbox_head = nn.ModuleList([nn.Conv2d(8, 4, 1)])
        self.seen = {}

    def forward(self, image):
        features = self.backbone(image)
        self.seen['backbone'] = features
        features = self.bottleneck(features)
        return self.bbox_head[0](features)


def apply(model, event='before_test', **changes):
    hook = AccelerationHook(model, Acceleration(**changes))
    getattr(hook, event)(None)
    return hook


def test_names_weights_and_outputs_stay_in_channels_last():
    model = Detector().eval()
    image = torch.randn(2, 3, 9, 7)
    expected, keys = model(image), list(model.state_dict())
    hook = apply(model, channels_last=True)
    hook.before_test(None)  # a second time changes nothing
    assert len(model.backbone._forward_pre_hooks) == 1
    torch.testing.assert_close(model(image), expected)
    assert model.seen['backbone'].is_contiguous(memory_format=torch.channels_last)
    assert list(model.state_dict()) == keys


def test_bfloat16_computes_in_it_and_returns_float32():
    model = Detector().eval()
    image = torch.randn(2, 3, 9, 7)
    expected = model(image)
    computed = []
    # The second does not have the name of a detector's part.
    for layer in (model.backbone[1], model.bottleneck):
        layer.register_forward_hook(lambda *called: computed.append(called[-1].dtype))
    apply(model, bf16=True)
    output = model(image)
    assert computed == [torch.bfloat16, torch.float32]
    assert output.dtype == torch.float32 and not torch.equal(output, expected)
    torch.testing.assert_close(output, expected, atol=0.05, rtol=0.05)


def test_weights_are_rounded_once_for_tests_of_the_deployed_form():
    model = Detector().eval()
    image = torch.randn(2, 3, 9, 7)
    twin = copy.deepcopy(model)
    apply(model, deploy=True, bf16=True)
    apply(twin, bf16=True)
    types = {module.weight.dtype for module in model.backbone.modules()
             if isinstance(module, nn.Conv2d)}
    assert types == {torch.bfloat16}
    assert model.bottleneck.weight.dtype == torch.float32  # not accelerated
    with torch.no_grad():
        for _ in range(2):
            output, expected = model(image), twin(image)
            assert output.dtype == torch.float32
            torch.testing.assert_close(output, expected, atol=0.05, rtol=0.05)
    training = Detector()
    apply(training, 'before_train', deploy=True, bf16=True)
    assert all(p.dtype == torch.float32 for p in training.parameters())


@pytest.mark.parametrize('deploy', [False, True])
@torch.no_grad()
def test_scores_keep_their_digits(deploy):
    """In bfloat16, 10,000 scores would have a few hundred values, and ties choose boxes."""
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower, self.scores = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return [self.scores(self.tower(x)), {'other': self.scores(x)}]

    model = nn.ModuleDict(dict(bbox_head=Head().eval()))
    head = model['bbox_head']
    apply(model, bf16=True, deploy=deploy)
    types = []
    head.tower.register_forward_hook(lambda *called: types.append(called[-1].dtype))
    features = torch.randn(1, 8, 100, 100)
    for _ in range(2):  # the first call finds the last layer
        scores, others = head(features)
        assert len(scores.unique()) > 0.99 * scores.numel()
        assert others['other'].dtype == torch.float32
    assert set(types) == {torch.bfloat16}
    assert head.tower.weight.dtype == (torch.bfloat16 if deploy else torch.float32)
    assert head.scores.weight.dtype == torch.float32


def test_gradients_pass_bfloat16():
    model = Detector()
    other = copy.deepcopy(model)
    image = torch.randn(2, 3, 9, 7)
    model(image).square().mean().backward()
    apply(other, 'before_train', bf16=True)
    other(image).square().mean().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() < 0.05 * a.grad.norm()


def test_training_never_deploys(monkeypatch):
    folded = []
    monkeypatch.setattr(acceleration, 'deploy', folded.append)
    apply(Detector(), 'before_train', deploy=True)
    assert not folded
    model = Detector()
    apply(model, deploy=True)
    assert folded == [model] and not model.training


def test_averages_are_not_swapped_into_folded_weights():
    hook = AccelerationHook(Detector(), Acceleration(deploy=True))
    runner = SimpleNamespace(_hooks=[hook, EMAHook()])
    runner.hooks = runner._hooks
    hook.before_run(runner)
    assert runner._hooks == [hook]


def test_a_model_without_a_backbone():
    with pytest.raises(ConfigError, match='need a backbone, and Linear has none'):
        accelerate(None, nn.Linear(2, 2), Acceleration(channels_last=True))
    accelerate(None, nn.Linear(2, 2), Acceleration())


def test_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(acceleration, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: False)
    with pytest.raises(UserError, match='^--bf16 needs a GPU'):
        Acceleration(bf16=True).check_device()
    Acceleration(deploy=True, channels_last=True).check_device()


def test_accelerations_in_words():
    assert not Acceleration() and str(Acceleration()) == 'nothing'
    assert str(Acceleration(channels_last=True, bf16=True)) == 'channels-last, bf16'


def test_compilation_without_a_compiler():
    # Not monkeypatch, which would take the setting away afterwards.
    with inductor.patch({'cpp.cxx': ('no-such-compiler',)}), \
            pytest.raises(UserError, match=r'^--compile needs a C\+\+ compiler .* install g\+\+'):
        Acceleration(compile=True).check_device()


def test_a_whole_detector(config):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    image = torch.randn(1, 3, 128, 160)
    with torch.inference_mode():
        expected = [level for kind in model(image) for level in kind]
        apply(model, deploy=True, channels_last=True)
        outputs = [level for kind in model(image) for level in kind]
        for level, expected_level in zip(outputs, expected, strict=True):
            torch.testing.assert_close(level, expected_level, rtol=1e-4, atol=1e-5)
        apply(model, bf16=True)
        for kind in model(image):
            assert all(level.dtype == torch.float32 for level in kind)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.slow
def test_compiles_a_graph_for_each_size(monkeypatch):
    try:
        check_compiler('cpu', '--compile')
    except UserError as error:
        pytest.skip(str(error))
    messages = []
    monkeypatch.setattr(acceleration, 'print_log', lambda text, **_: messages.append(text))
    torch.compiler.reset()
    model = Detector().eval()
    images = [torch.randn(1, 3, height, width) for height, width in ((9, 7), (8, 12), (20, 21))]
    with torch.no_grad():
        expected = [model(image) for image in images]
        hook = apply(model, compile=True)
        for image, output in zip(images, expected, strict=True):
            torch.testing.assert_close(model(image), output)
    hook.after_run(None)
    assert messages == ['torch.compile: 3 graphs compiled']


@pytest.mark.slow
def test_compiled_inference_packs_weights():
    """torch.compile silently ignores the setting when it comes too late."""
    try:
        check_compiler('cpu', '--compile')
    except UserError as error:
        pytest.skip(str(error))
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    conv = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    image = torch.randn(1, 8, 9, 7)
    with torch.inference_mode():
        output = compiled(conv, 'cpu', inference=True)(image)
        torch.testing.assert_close(output, conv(image))
    assert counters['inductor']['mkldnn_conv_weight_pack_matcher_count'] == 1
