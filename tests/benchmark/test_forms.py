"""Forms are what they are called, and all compute the same."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from evit_mm.benchmark import forms
from evit_mm.benchmark.forms import Form, dress, largest_difference
from evit_mm.benchmark.memory import saved_bytes
from evit_mm.benchmark.networks import build_networks
from evit_mm.benchmark.timing import run
from evit_mm.errors import UserError
from evit_mm.models.layers import ConvNorm


@pytest.fixture(scope='module')
def network():
    return build_networks(['m0'], with_neck=True)[0]


@pytest.fixture
def image():
    return torch.randn(2, 3, 96, 128)


def test_deploying_folds_and_changes_nothing(network, image):
    eager, deployed = (dress(network.model, Form(name), image) for name in ('eager', 'deploy'))
    assert any(isinstance(module, _BatchNorm) for module in eager.model.modules())
    assert not any(isinstance(module, _BatchNorm) for module in deployed.model.modules())
    assert list(eager.work) == list(deployed.work) == ['backbone', 'neck']
    expected = eager.outcome()
    assert len(expected) == 5
    assert 0 < largest_difference(deployed.outcome(), expected) < 1e-5


@pytest.mark.parametrize(('form', 'dtype', 'bound'), [
    (Form(layout='channels-last'), torch.float32, 1e-5),
    (Form(dtype='bf16'), torch.bfloat16, 0.1),
    (Form('deploy', dtype='bf16', layout='channels-last'), torch.bfloat16, 0.1)])
def test_number_formats_and_layouts(network, image, form, dtype, bound):
    expected = dress(network.model, Form(), image).outcome()
    case = dress(network.model, form, image)
    weights = [tensor for tensor in case.model.parameters() if tensor.dim() == 4]
    assert {tensor.dtype for tensor in weights} == {dtype} == {case.given.dtype}
    assert case.given.is_contiguous(memory_format=forms.LAYOUTS[form.layout])
    if form.layout == 'channels-last':
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in weights)
    assert largest_difference(case.outcome(), expected) < bound
    assert case.work['backbone'](case.given)[0].dtype == dtype


def test_the_network_stays_as_it_is(network, image):
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    for form in (Form('deploy', 'bf16', 'channels-last'), Form('folded')):
        dress(network.model, form, image, mode='train' if form.name == 'folded' else 'inference')
    after = network.model.state_dict()
    assert before.keys() == after.keys() and not network.model.training
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_training_steps(network, image):
    plain, folded = (dress(network.model, Form(name), image, mode='train')
                     for name in ('eager', 'folded'))
    losses, gradients = [], []
    for case, folds in ((plain, False), (folded, True)):
        assert {module.fold_norm for module in case.model.modules()
                if isinstance(module, ConvNorm)} == {folds}
        norms = [module for module in case.model.modules() if isinstance(module, _BatchNorm)]
        before = [norm.running_mean.clone() for norm in norms]
        weight, steps = case.model['neck'].fpn.fpn_convs[0].conv.weight, []
        for _ in range(2):  # a second step does not add to the gradients of the first
            losses.append(run(case.work, case.given))
            steps.append(weight.grad.clone())
        torch.testing.assert_close(*steps)
        gradients.append({name: tensor.grad for name, tensor in case.model.named_parameters()})
        assert all(torch.equal(norm.running_mean, mean)
                   for norm, mean in zip(norms, before, strict=True))
        assert all(norm.weight.grad is not None for norm in norms)
    assert list(plain.work) == ['forward', 'backward']
    torch.testing.assert_close(losses, [losses[0]] * 4)
    for name in ('neck.fpn.fpn_convs.0.conv.weight', 'backbone.stages.2.blocks.2.ffn2.project.'
                 'norm.weight'):
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-3, atol=1e-6)
    assert saved_bytes(folded.forward, [folded.model]) > 0


def test_training_in_half_precision_keeps_float_weights(network, image):
    case = dress(network.model, Form(dtype='bf16'), image, mode='train')
    assert run(case.work, case.given).dtype == torch.float32
    assert {parameter.dtype for parameter in case.model.parameters()} == {torch.float32}
    expected = dress(network.model, Form(), image, mode='train').outcome()
    assert 0 < largest_difference(case.outcome(), expected) < 0.05


def test_the_loss_is_the_sum_of_mean_squares():
    class Two(nn.Module):
        def forward(self, x):
            return {'a': [x * self.weight], 'b': (x + 1,)}

    part = Two()
    part.weight = nn.Parameter(torch.tensor(3.0))
    image = torch.full((1, 3, 2, 2), 2.0)
    case = dress(nn.ModuleDict({'backbone': part}), Form(), image, mode='train')
    assert run(case.work, image).item() == 36 + 9
    assert case.model['backbone'].weight.grad.item() == 2 * 6 * 2


def test_differences_are_relative_to_each_tensor():
    expected = {'a': torch.tensor([1.0, -10]), 'b': torch.tensor([0.01, 0])}
    found = {'a': torch.tensor([1.0, -10.1]), 'b': torch.tensor([0.01, 0.002])}
    assert largest_difference(found, expected) == pytest.approx(0.2)
    assert largest_difference(expected, expected) == 0
    broken = {**found, 'a': torch.tensor([float('nan'), 0])}
    assert largest_difference(broken, expected) != largest_difference(broken, expected)


def test_compiling_without_a_compiler_is_told(network, image, monkeypatch):
    from torch._inductor import cpp_builder, exc

    def absent():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, 'get_cpp_compiler', absent)
    with pytest.raises(UserError, match='needs a C\\+\\+ compiler'):
        dress(network.model, Form('compiled'), image)


def test_backbone_and_neck_are_compiled_after_folding(network, image, monkeypatch):
    seen = []

    def compiled(forward, device, **options):
        seen.append((forward.__self__, device, options))
        return forward

    monkeypatch.setattr(forms, 'compiled', compiled)
    monkeypatch.setattr(forms, 'check_compiler', lambda *_: None)
    for peer in (False, True):
        seen.clear()
        case = dress(network.model, Form('compiled'), image, peer=peer)
        assert [module for module, *_ in seen] == list(case.model.values())
        folded = not any(isinstance(module, _BatchNorm) for module in case.model.modules())
        assert folded is not peer
        assert seen[0][1:] == ('cpu', dict(inference=True, cuda_graphs=False))
    dress(network.model, Form('compiled'), image, mode='train')
    assert seen[-1][2] == dict(inference=False, cuda_graphs=False)


def test_mistakes_are_told(network, image):
    for match, form, mode in (('deploy is no form of train', Form('deploy'), 'train'),
                              ('folded is no form of inference', Form('folded'), 'inference'),
                              ('need a CUDA device', Form('deploy', graph=True), 'inference')):
        with pytest.raises(UserError, match=match):
            dress(network.model, form, image, mode=mode)
