"""All forms of a network compute the same, each in its own way."""

import pytest
import torch
from torch import nn

from evit_mm.benchmark import forms
from evit_mm.benchmark.forms import Form, largest_difference, prepare
from evit_mm.benchmark.measure import plan
from evit_mm.benchmark.memory import saved_bytes
from evit_mm.benchmark.networks import Network, build_networks
from evit_mm.benchmark.timing import run_steps
from evit_mm.errors import UserError


@pytest.fixture(scope='module')
def network():
    return build_networks(['m0'], with_neck=True)[0]


@pytest.fixture
def image():
    return torch.randn(2, 3, 96, 128)


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_deploy_folds_bn_and_keeps_outputs(network, image):
    eager, deployed = (prepare(network.model, Form(name), image) for name in ('eager', 'deploy'))
    assert norms_of(eager.model) and not norms_of(deployed.model)
    assert list(eager.steps) == list(deployed.steps) == ['backbone', 'neck']
    expected = eager.results()
    assert len(expected) == 5
    assert 0 < largest_difference(deployed.results(), expected) < 1e-5


@pytest.mark.parametrize(('form', 'dtype', 'bound'), [
    (Form(layout='channels-last'), torch.float32, 1e-5),
    (Form(dtype='bf16'), torch.bfloat16, 0.1),
    (Form('deploy', dtype='bf16', layout='channels-last'), torch.bfloat16, 0.1)])
def test_dtypes_and_layouts(network, image, form, dtype, bound):
    expected = prepare(network.model, Form(), image).results()
    prepared = prepare(network.model, form, image)
    weights = [tensor for tensor in prepared.model.parameters() if tensor.dim() == 4]
    assert {tensor.dtype for tensor in weights} == {dtype} == {prepared.inputs.dtype}
    assert prepared.inputs.is_contiguous(memory_format=forms.LAYOUTS[form.layout])
    if form.layout == 'channels-last':
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in weights)
    assert largest_difference(prepared.results(), expected) < bound
    assert prepared.steps['backbone'](prepared.inputs)[0].dtype == dtype


def test_the_network_is_not_changed(network, image):
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    prepare(network.model, Form('deploy', 'bf16', 'channels-last'), image)
    prepare(network.model, Form('folded'), image, mode='train')
    prepare(network.model, Form('efficient'), image, mode='train')
    after = network.model.state_dict()
    assert before.keys() == after.keys() and not network.model.training
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_training_forms(network, image):
    """Same losses and gradients, frozen statistics, and less saved memory."""
    losses, gradients, saved = [], [], []
    for name in ('eager', 'efficient', 'folded'):
        prepared = prepare(network.model, Form(name), image, mode='train')
        assert list(prepared.steps) == ['forward', 'backward']
        assert prepared.model['backbone'].fold_norm is (name == 'folded')
        norms = norms_of(prepared.model)
        before = [norm.running_mean.clone() for norm in norms]
        weight, steps = prepared.model['neck'].fpn.fpn_convs[0].conv.weight, []
        for _ in range(2):  # the second step must not add to the gradients of the first
            losses.append(run_steps(prepared.steps, prepared.inputs))
            steps.append(weight.grad.clone())
        torch.testing.assert_close(*steps)
        gradients.append({name: tensor.grad for name, tensor in prepared.model.named_parameters()})
        assert all(torch.equal(norm.running_mean, mean)
                   for norm, mean in zip(norms, before, strict=True))
        assert all(norm.weight.grad is not None for norm in norms)
        saved.append(saved_bytes(prepared.forward, [prepared.model]))
    torch.testing.assert_close(losses, [losses[0]] * 6)
    for name in ('neck.fpn.fpn_convs.0.conv.weight', 'backbone.stages.2.blocks.2.ffn2.project.'
                 'norm.weight'):
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradients[0][name], rtol=1e-3, atol=1e-6)
    # mmengine's form keeps the scaled kernels, which outweigh the activations of small images.
    assert saved[2] < min(saved[:2])


def test_training_in_half_precision_keeps_float32_weights(network, image):
    prepared = prepare(network.model, Form(dtype='bf16'), image, mode='train')
    assert run_steps(prepared.steps, prepared.inputs).dtype == torch.float32
    assert {parameter.dtype for parameter in prepared.model.parameters()} == {torch.float32}
    expected = prepare(network.model, Form(), image, mode='train').results()
    assert 0 < largest_difference(prepared.results(), expected) < 0.05


def test_the_loss_is_the_sum_of_mean_squares():
    class Two(nn.Module):
        def forward(self, x):
            return {'a': [x * self.weight], 'b': (x + 1,)}

    part = Two()
    part.weight = nn.Parameter(torch.tensor(3.0))
    image = torch.full((1, 3, 2, 2), 2.0)
    prepared = prepare(nn.ModuleDict({'backbone': part}), Form(), image, mode='train')
    assert run_steps(prepared.steps, image).item() == 36 + 9
    assert prepared.model['backbone'].weight.grad.item() == 2 * 6 * 2


def test_timms_models_have_a_fused_form(image):
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    network, = build_networks(['timm://efficientvit_m0'])
    eager, fused = (prepare(network.model, Form(name), image, peer=True)
                    for name in ('eager', 'fused'))
    assert norms_of(eager.model) and not norms_of(fused.model)
    assert 0 < largest_difference(fused.results(), eager.results()) < 1e-5
    networks = [Network('m0', None), network, Network('torchvision://resnet50', None, peer=True)]
    rows = [str(row) for row, _ in plan(networks, [Form()], [Form(), Form('fused')], (64, 64))]
    assert rows == ['m0 eager fp32', 'timm://efficientvit_m0 eager fp32',
                    'timm://efficientvit_m0 fused fp32', 'torchvision://resnet50 eager fp32']


def test_differences_are_relative_to_each_tensor():
    expected = {'a': torch.tensor([1.0, -10]), 'b': torch.tensor([0.01, 0])}
    tensors = {'a': torch.tensor([1.0, -10.1]), 'b': torch.tensor([0.01, 0.002])}
    assert largest_difference(tensors, expected) == pytest.approx(0.2)
    assert largest_difference(expected, expected) == 0
    broken = {**tensors, 'a': torch.tensor([float('nan'), 0])}
    assert largest_difference(broken, expected) != largest_difference(broken, expected)


def test_a_missing_compiler_is_reported(network, image, monkeypatch):
    from torch._inductor import cpp_builder, exc

    def absent():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, 'get_cpp_compiler', absent)
    with pytest.raises(UserError, match='needs a C\\+\\+ compiler'):
        prepare(network.model, Form('compiled'), image)


def test_backbone_and_neck_are_compiled_after_folding(network, image, monkeypatch):
    calls = []

    def compiled(forward, device, **options):
        calls.append((forward.__self__, device, options))
        return forward

    monkeypatch.setattr(forms, 'compiled', compiled)
    monkeypatch.setattr(forms, 'check_compiler', lambda *_: None)
    for peer in (False, True):
        calls.clear()
        prepared = prepare(network.model, Form('compiled'), image, peer=peer)
        assert [module for module, *_ in calls] == list(prepared.model.values())
        assert bool(norms_of(prepared.model)) is peer
        assert calls[0][1:] == ('cpu', dict(inference=True))
    prepared = prepare(network.model, Form('compiled'), image, mode='train')
    assert calls[-1][2] == dict(inference=False)
    assert prepared.model['backbone'].fold_norm


def test_impossible_forms_are_rejected(network, image):
    for match, form, mode, peer in (
            ("'deploy' is not a form of mode 'train'", Form('deploy'), 'train', False),
            ("'folded' is not a form of mode 'inference'", Form('folded'), 'inference', False),
            ("'fused' is not a form of mode 'inference'", Form('fused'), 'inference', False),
            ("'deploy' is not a form of mode 'inference'", Form('deploy'), 'inference', True),
            ('need a CUDA device', Form('deploy', graph=True), 'inference', False)):
        with pytest.raises(UserError, match=match):
            prepare(network.model, form, image, mode=mode, peer=peer)
