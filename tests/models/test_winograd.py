"""Winograd's method computes torch's convolution, follows its weights, and steps back."""

import copy
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.deployment.fuse import deploy
from evit_mm.models import onednn, winograd
from evit_mm.models.winograd import WinogradConv2d, fits

pytestmark = pytest.mark.skipif(not onednn._dtypes(), reason='torch has no oneDNN here')


def layer(in_channels=128, out_channels=128, relu=False, **options):
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, **options)
    return WinogradConv2d(conv, relu=relu).requires_grad_(False)


def exact(conv, x):
    bias = None if conv.bias is None else conv.bias.double()
    y = nn.functional.conv2d(x.double(), conv.weight.double(), bias, padding=1)
    return y.relu() if conv.relu else y


def error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Shapes of the maps that were convolved by Winograd's method."""
    found = []
    convolve = winograd._convolve
    monkeypatch.setattr(winograd, '_convolve', lambda x, *others, **named:
                        found.append(tuple(x.shape)) or convolve(x, *others, **named))
    return found


@pytest.fixture
def always(monkeypatch):
    """It is not asked whether it pays."""
    monkeypatch.setattr(winograd, '_pays', lambda *given: True)


@pytest.mark.parametrize('shape', [
    (1, 1, 1), (1, 16, 16), (1, 100, 42), (1, 33, 101), (1, 14, 1500), (1, 13, 21), (2, 9, 70),
    (2, 60, 70), (3, 21, 13), (20, 7, 7), (70, 14, 14), (300, 5, 5)], ids=str)
@pytest.mark.parametrize('options', [dict(), dict(relu=True), dict(bias=False, relu=True)], ids=str)
@torch.no_grad()
def test_it_is_the_convolution(shape, options, always, calls):
    conv = layer(128, 136, **options)
    maps = torch.randn(shape[0], 128, *shape[1:])
    for x in (maps.contiguous(memory_format=torch.channels_last), maps,
              torch.randn(shape[0], *shape[1:], 256).permute(0, 3, 1, 2)[:, 64:192]):
        before = x.clone()
        y = conv(x)
        assert error(y, exact(conv, x)) < 5e-6
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, before)
    assert len(calls) == 3


@torch.no_grad()
def test_wide_sums_lose_no_digits(always):
    """Values of one sign leave errors no chance to cancel; 2048 channels are many."""
    conv = layer(2048, 96)
    conv.weight.abs_()
    x = torch.rand(1, 2048, 20, 20)
    assert error(conv(x), exact(conv, x)) < 5e-6


@torch.no_grad()
def test_edges_see_zeros_alone(always):
    """A kernel that reads one neighbour moves the map, and brings zeros in."""
    conv = layer(bias=False)
    x = torch.randn(1, 128, 37, 45)
    for row, column in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)):
        conv.weight.zero_()
        conv.weight[:, :, row, column] = torch.eye(128)
        expected = nn.functional.pad(x, (1, 1, 1, 1))[..., row:row + 37, column:column + 45]
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('shape', [(1, 128, 32, 32), (1, 128, 1, 6000), (512, 128, 2, 2),
                                   (0, 128, 14, 14), (128, 48, 48)], ids=str)
@torch.no_grad()
def test_it_leaves_small_maps_to_torch(shape, calls):
    conv = layer(relu=True)
    x = torch.randn(shape)
    y = conv(x)
    assert not calls and y.shape == x.shape
    conv(torch.randn(1, 128, 44, 44))
    assert len(calls) == 1
    if x.numel():
        assert error(y, exact(conv, x)) < 1e-6


@pytest.mark.filterwarnings('ignore:TF32 acceleration')
def test_it_steps_back(always, calls):
    conv = layer()
    x = torch.randn(1, 128, 16, 16)

    def used(module=conv, image=x):
        calls.clear()
        module(image)
        return bool(calls)

    assert not used()  # gradients are on
    image = x.clone().requires_grad_()
    conv(image).sum().backward()
    assert image.grad.abs().sum() > 0
    with torch.no_grad():
        assert used()
        assert not used(copy.deepcopy(conv).double(), x.double())
        half = copy.deepcopy(conv).bfloat16()
        assert not used(half, x.bfloat16())
        with torch.autocast('cpu', torch.bfloat16):
            assert not used() and not used(half) and conv(x).dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            assert not used()
        torch.set_float32_matmul_precision('high')
        try:
            assert not used()
        finally:
            torch.set_float32_matmul_precision('highest')
        torch.func.vmap(conv)(x[None])
        with torch.autograd.forward_ad.dual_level():
            assert not used()
            y = conv(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None
        assert not calls
        with FlopCounterMode(display=False) as counter:
            assert not used()
        assert counter.get_total_flops() == 2 * 9 * 128 * 128 * 256
        calls.clear()
        traced = torch.jit.trace(conv, x, check_trace=False)
        assert not calls and 'aten::_convolution' in str(traced.inlined_graph)
    with torch.inference_mode():
        assert used()
        conv.weight = nn.Parameter(conv.weight.clone(), requires_grad=False)
        assert not used()


def test_the_default_device_does_not_matter(always, calls):
    winograd._map_transforms.cache_clear()
    conv, x = layer(), torch.randn(1, 128, 16, 16)
    try:
        with torch.device('meta'), torch.inference_mode():
            conv(x)
        with torch.no_grad():
            assert error(conv(x), exact(conv, x)) < 5e-6
    finally:
        winograd._map_transforms.cache_clear()
    assert len(calls) == 2


@torch.no_grad()
def test_changes_of_the_weight_are_seen(always, calls):
    conv = layer()
    x = torch.randn(1, 128, 16, 16)
    conv(x)
    transformed = conv._transformed._entry[2]
    conv(x)
    assert conv._transformed._entry[2] is transformed  # made once
    conv.weight.mul_(2)
    assert error(conv(x), exact(conv, x)) < 5e-6
    conv.load_state_dict(layer().state_dict())
    assert error(conv(x), exact(conv, x)) < 5e-6
    conv.weight = nn.Parameter(conv.weight.transpose(2, 3), requires_grad=False)  # same memory
    assert error(conv(x), exact(conv, x)) < 5e-6
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert twin._transformed._entry is None
        twin.weight.mul_(3)
        assert error(twin(x), exact(twin, x)) < 5e-6
    assert error(conv(x), exact(conv, x)) < 5e-6
    assert len(calls) == 8


@pytest.mark.parametrize('shape,sizes', [
    ((1, 100, 168), [288, 288, 288, 96, 96]), ((1, 50, 84), [288]),
    ((3, 45, 60), [288, 96, 96, 64]), ((1, 5, 960), [288, 96, 96])], ids=str)
@torch.no_grad()
def test_chunks_may_differ_in_size(shape, sizes, calls, monkeypatch):
    seen = []
    matmul = onednn.PackedMatrices.matmul
    monkeypatch.setattr(onednn.PackedMatrices, 'usual_rows', lambda *given: (64, 96, 288))
    monkeypatch.setattr(onednn.PackedMatrices, 'matmul',
                        lambda self, x: seen.append(len(x)) or matmul(self, x))
    conv = layer(128, 152, relu=True)
    x = torch.randn(shape[0], 128, *shape[1:])
    assert error(conv(x), exact(conv, x)) < 5e-6
    assert len(calls) == 1 and seen == sizes


@torch.no_grad()
def test_what_fills_up_a_chunk_does_not_matter(always):
    """Memory that was not written may hold anything, NaN included."""
    conv = layer()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for shape in ((1, 128, 5, 7), (1, 128, 41, 45), (3, 128, 14, 14)):
            x = torch.randn(shape)
            assert error(conv(x), exact(conv, x)) < 5e-6
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('rows', [64, 96, 288, 7])
@torch.no_grad()
def test_products_of_many_matrices(rows):
    matrices, x = torch.randn(5, 40, 24), torch.randn(rows, 5, 24)
    expected = torch.einsum('mgk,gnk->mgn', x.double(), matrices.double())
    assert error(onednn.PackedMatrices(matrices).matmul(x), expected) < 1e-6


def test_rows_for_which_nothing_is_rearranged(monkeypatch):
    usual_rows = onednn.PackedMatrices.usual_rows
    found = usual_rows(36, 128, 128)
    assert found[-1] == 288 and set(found) <= {64, 96, 288}
    orders = {64: 1., 96: 2., 288: 2.}
    monkeypatch.setattr(onednn, '_packed_groups', lambda matrices, rows: torch.tensor(orders[rows]))
    monkeypatch.setattr(torch.ops.mkldnn, '_get_mkldnn_serialized_md', lambda order: order)
    assert usual_rows(36, 128, 129) == (96, 288)
    monkeypatch.setattr(torch.ops.mkldnn, '_get_mkldnn_serialized_md', None)
    assert usual_rows(36, 128, 130) == (288,)
    usual_rows.cache_clear()


@pytest.mark.parametrize('options', [
    dict(stride=2), dict(dilation=2, padding=2), dict(padding=0), dict(groups=2),
    dict(padding_mode='reflect'), dict(kernel_size=(3, 1), padding=(1, 0)),
    dict(kernel_size=5, padding=2), dict(out_channels=36), dict(in_channels=64)], ids=str)
def test_what_does_not_fit(options):
    assert fits(nn.Conv2d(**{**dict(in_channels=256, out_channels=256, kernel_size=3, padding=1)}))
    assert not fits(nn.Conv2d(**{**dict(in_channels=256, out_channels=256, kernel_size=3,
                                        padding=1), **options}))


def test_what_others_changed_does_not_fit():
    def conv():
        return nn.Conv2d(128, 128, 3, padding=1)

    class Own(nn.Conv2d):
        pass

    hooked = conv()
    hooked.register_forward_hook(lambda *_: None)
    for other in (Own(128, 128, 3, padding=1), hooked, nn.utils.spectral_norm(conv()),
                  nn.utils.parametrizations.weight_norm(conv()), nn.Linear(128, 128)):
        assert not fits(other)


@pytest.mark.parametrize('options,relu', [
    (dict(), True), (dict(norm_cfg=dict(type='BN')), True), (dict(act_cfg=None), False),
    (dict(act_cfg=dict(type='ReLU6')), False),
    (dict(norm_cfg=dict(type='GN', num_groups=4)), False),
    (dict(norm_cfg=dict(type='GN', num_groups=4), order=('norm', 'conv', 'act')), True),
    (dict(norm_cfg=dict(type='GN', num_groups=4), order=('conv', 'act', 'norm')), True),
    (dict(order=('act', 'conv', 'norm')), False)], ids=str)
@torch.no_grad()
def test_deploy_uses_it_with_the_relu_that_follows(options, relu, always, calls):
    plain = ConvModule(128, 128, 3, padding=1, **options)
    if 'norm_cfg' in options:
        nn.init.normal_(plain.norm.weight)
        nn.init.normal_(plain.norm.bias)
    for last in (torch.nn.Identity(), nn.Conv2d(128, 256, 3, padding=1)):
        model = nn.Sequential(plain, last).eval()
        deployed = deploy(copy.deepcopy(model))
        assert isinstance(deployed[0].conv, WinogradConv2d) and deployed[0].conv.relu == relu
        assert set(deployed.state_dict()) - {'0.conv.bias'} <= set(model.state_dict())
        x = torch.randn(2, 128, 18, 18)
        assert error(deployed(x), model(x).double()) < 1e-5
    assert len(calls) == 3
    assert deploy(deployed)(x).equal(deployed(x))


@torch.no_grad()
def test_a_relu_that_somebody_watches_stays():
    plain, seen = ConvModule(128, 128, 3, padding=1), []
    plain.activate.register_forward_hook(lambda *called: seen.append(called[-1]))
    model = deploy(nn.Sequential(plain).eval())
    y = model(torch.randn(1, 128, 16, 16))
    assert len(seen) == 1 and torch.equal(seen[0], y) and y.min() == 0
    before = ConvModule(128, 128, 3, padding=1)
    before.activate.register_forward_pre_hook(lambda *called: seen.append(called[-1][0].clone()))
    y = deploy(nn.Sequential(before).eval())(torch.randn(1, 128, 16, 16))
    assert len(seen) == 2 and torch.equal(seen[1].relu(), y) and seen[1].min() < 0


def test_a_block_of_its_own_kind_keeps_its_relu():
    class Noted(ConvModule):
        pass

    model = deploy(nn.Sequential(Noted(128, 128, 3, padding=1)).eval())
    assert not model[0].conv.relu and type(model[0].activate) is nn.ReLU


@torch.no_grad()
def test_weights_are_shared_not_copied():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    model = deploy(nn.Sequential(conv).eval())
    assert model[0].weight is conv.weight and model[0].bias is conv.bias
    assert not model[0].training
