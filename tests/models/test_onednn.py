"""oneDNN's operators compute what torch's do, follow every change of the weights, and step back."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.models import EfficientViT, onednn
from evit_mm.models.layers import ConvNorm

pytestmark = pytest.mark.skipif(not onednn._dtypes(), reason='torch has no oneDNN here')
BN = dict(type='BN')


def deployed(*args, **options):
    torch.manual_seed(0)
    layer = ConvNorm(*args, norm_cfg=BN, **options).eval()
    nn.init.normal_(layer.norm.bias)
    layer.switch_to_deploy()
    return layer.requires_grad_(False)


def by_torch(layer, x, relu=False, add=None):
    y = nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias, layer.conv.stride,
                             layer.conv.padding, groups=layer.conv.groups)
    y = y.relu() if relu else y
    return y if add is None else y + add


@pytest.fixture
def calls(monkeypatch):
    """Names of the operators that were called."""
    found = []
    matmul = onednn.PackedWeight.matmul

    def recorded(self, *args, **named):
        found.append('matmul')
        return matmul(self, *args, **named)

    monkeypatch.setattr(onednn.PackedWeight, 'matmul', recorded)
    return found


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize('shape', [(1, 24, 1, 1), (3, 24, 7, 5), (2, 24, 40, 33)], ids=str)
@torch.no_grad()
def test_pointwise(shape, dtype, tolerance, last, calls):
    if dtype not in onednn._dtypes():
        pytest.skip('this CPU does not compute in bfloat16')
    layer = deployed(24, 40).to(dtype)
    x = torch.randn(shape).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    add = torch.randn_like(by_torch(layer, x))
    given = x.clone(), add.clone()
    for options in ({}, dict(relu=True), dict(add=add)):
        torch.testing.assert_close(layer(x, **options), by_torch(layer, x, **options),
                                   rtol=tolerance, atol=tolerance)
    assert calls.count('matmul') == 3
    assert torch.equal(x, given[0]) and torch.equal(add, given[1])


@pytest.mark.parametrize('options', [dict(stride=2), dict(groups=24), dict(groups=24, stride=2)],
                         ids=str)
@torch.no_grad()
def test_other_convolutions(options):
    layer = deployed(24, 48, 3, **options)
    packed = None
    for shape in ((2, 24, 19, 14), (1, 24, 70, 91), (3, 24, 1, 1)):
        for layout in (torch.channels_last, torch.contiguous_format):
            x = torch.randn(shape).contiguous(memory_format=layout)
            for relu in (False, True):
                torch.testing.assert_close(layer(x, relu=relu), by_torch(layer, x, relu=relu),
                                           rtol=1e-5, atol=1e-5)
            packed = packed if packed is not None else layer._packed._packed._entry[2]
            assert layer._packed._packed._entry[2] is packed  # one order for all sizes


def replaced(layer):
    layer.conv.weight = nn.Parameter(layer.conv.weight * 2)


def changed_in_place(layer):
    layer.conv.weight.mul_(2)


def loaded(layer):
    layer.load_state_dict({**layer.state_dict(), 'conv.weight': torch.randn(40, 24, 1, 1)})


def rounded_and_back(layer):
    layer.conv.weight.mul_(1 + 1e-3)
    layer.bfloat16().float()


@pytest.mark.parametrize('change', [replaced, changed_in_place, loaded, rounded_and_back])
@torch.no_grad()
def test_changes_of_the_weight_are_seen(change, calls):
    layer = deployed(24, 40)
    x = torch.randn(1, 24, 6, 6)
    before = layer(x)
    packed = layer._packed._packed._entry[2]
    layer(x)
    assert layer._packed._packed._entry[2] is packed  # made once
    change(layer)
    after = layer(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, by_torch(layer, x), rtol=1e-5, atol=1e-5)
    assert calls.count('matmul') == 3


@torch.no_grad()
def test_copies_and_files_have_none_of_it():
    layer = deployed(24, 40)
    x = torch.randn(1, 24, 6, 6)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
                 torch.load(file, weights_only=False)):
        assert twin._packed._packed._entry is None
        assert torch.equal(twin(x), expected)
        twin.conv.weight.zero_()
        assert not torch.equal(twin(x), expected)
    assert torch.equal(layer(x), expected)


@pytest.mark.filterwarnings('ignore:TF32 acceleration')  # by the flags of torch
def test_it_steps_back(calls):
    layer = deployed(24, 40)
    x = torch.randn(1, 24, 6, 6)

    def used(image=x):
        calls.clear()
        layer(image)
        return 'matmul' in calls

    assert not used(x.clone().requires_grad_())
    with torch.no_grad():
        assert used()
        with torch.autocast('cpu', torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16 and not used()
            rounded = copy.deepcopy(layer).bfloat16()
            calls.clear()
            found = rounded(x, add=layer(x).float())
            assert found.dtype == torch.bfloat16 and 'matmul' in calls
            torch.testing.assert_close(found, by_torch(rounded, x, add=by_torch(rounded, x)),
                                       rtol=2e-2, atol=2e-2)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not used()
        with FlopCounterMode(display=False) as counter:
            assert not used()
        assert counter.get_total_flops() == 2 * 24 * 40 * 36
        calls.clear()
        torch.jit.trace(layer, x, check_trace=False)
        assert not calls
        layer.double()
        assert not used(x.double())
        layer.float()
    with torch.inference_mode():
        assert used()
        layer.conv.weight = nn.Parameter(layer.conv.weight.clone(), requires_grad=False)
        assert not used()


@torch.no_grad()
def test_a_whole_backbone(calls):
    """Every pointwise convolution outside of the heads goes this way, ReLU and residual inside."""
    model = EfficientViT('m0').eval()
    model.switch_to_deploy()
    model(torch.randn(1, 3, 64, 64))
    pointwise = [name for name, layer in model.named_modules()
                 if isinstance(layer, ConvNorm) and layer.conv.kernel_size == (1, 1)
                 and '.qkv.' not in name]
    assert calls.count('matmul') == len(pointwise) > 30
