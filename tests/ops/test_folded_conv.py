"""Training through folded convolutions gives the losses and gradients of the plain form."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from evit_mm.models import EfficientViT
from evit_mm.models.layers import ConvNorm, FeedForward
from evit_mm.ops.folded_conv import convolve_folded

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 2), num_heads=(2, 2, 4), key_dims=(4, 4, 4))


def pair(**options):
    """A plain and a folding backbone in training mode, with the same random weights."""
    options = dict(arch=TINY, norm_eval=True, **options)
    torch.manual_seed(0)
    plain, folding = EfficientViT(fold_norm=False, **options), EfficientViT(**options)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    folding.load_state_dict(plain.state_dict())
    return plain.train(), folding.train()


def loss_and_gradients(model, images):
    model.zero_grad()
    loss = sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()
               for x in model(images))
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_training(plain, folding, images, tolerance):
    expected, wanted = loss_and_gradients(plain, images)
    loss, gradients = loss_and_gradients(folding, images)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for name, gradient in wanted.items():
        if gradient is None:
            assert gradients[name] is None, name
        else:
            difference = (gradients[name] - gradient).abs().max() / gradient.abs().max()
            assert difference < tolerance, name


@pytest.mark.parametrize('shape', [(2, 3, 97, 131), (1, 3, 64, 64)], ids=str)
@pytest.mark.parametrize('options', [
    {}, dict(frozen_stages=1), dict(with_cp=True), dict(stem_strides=(4, 8))], ids=str)
def test_gradients_stay(options, shape):
    plain, folding = pair(**options)
    images = torch.randn(shape, dtype=torch.double)
    assert_same_training(plain.double(), folding.double(), images, 1e-9)


def test_gradients_stay_in_single_precision():
    plain, folding = pair()
    assert_same_training(plain, folding, torch.randn(2, 3, 97, 131), 1e-4)


@pytest.mark.parametrize('side', [3, 20])  # products of matrices, and convolutions
@pytest.mark.parametrize('learns', [
    'x weight gamma beta', 'x', 'weight', 'gamma', 'beta', 'x beta', 'weight gamma'])
@pytest.mark.parametrize('kernel_size,groups', [(1, 1), (3, 1), (3, 4), (1, 4)])
def test_every_gradient_of_a_layer(kernel_size, groups, learns, side):
    torch.manual_seed(0)
    layer = ConvNorm(4, 8, kernel_size, groups=groups, norm_cfg=dict(type='BN')).eval().double()
    nn.init.normal_(layer.norm.running_mean)
    nn.init.uniform_(layer.norm.running_var, 0.5, 1.5)
    tensors = dict(x=torch.randn(2, 4, side, side, dtype=torch.double),
                   weight=layer.conv.weight, gamma=layer.norm.weight, beta=layer.norm.bias)
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in learns.split())
    inputs = [tensors[name] for name in learns.split()]
    gradients = []
    for layer.fold_norm in (False, True):
        assert layer.folds == layer.fold_norm
        y = layer(tensors['x'], relu=True)
        gradients.append(torch.autograd.grad((y * y.cos()).sum(), inputs))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_layer_whose_norm_has_no_scale():
    torch.manual_seed(0)
    layer = ConvNorm(4, 8, 1, norm_cfg=dict(type='BN', affine=False)).eval().double()
    nn.init.normal_(layer.norm.running_mean)
    x = torch.randn(2, 4, 5, 5, dtype=torch.double)
    gradients = [torch.autograd.grad(layer(x).square().sum(), layer.conv.weight)[0]
                 for layer.fold_norm in (False, True)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)
    weight, shift = layer.folded()
    assert weight.requires_grad and not shift.requires_grad


def test_gradients_of_the_image_and_of_gradients():
    plain, folding = pair()
    images = torch.randn(1, 3, 40, 50, dtype=torch.double, requires_grad=True)
    second = []
    for model in (plain.double(), folding.double()):
        loss = sum(x.square().sum() for x in model(images))
        first, = torch.autograd.grad(loss, images, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), images)[0])
    torch.testing.assert_close(second[1], second[0], rtol=1e-8, atol=1e-8)


def test_random_depth_drops_whole_residuals():
    plain, folding = pair(drop_path_rate=0.5)
    images = torch.randn(4, 3, 64, 64, dtype=torch.double)
    results = []
    for model in (plain.double(), folding.double()):
        torch.manual_seed(3)
        results.append(loss_and_gradients(model, images)[0])
    torch.testing.assert_close(results[1], results[0])


def count_norms(model, images):
    calls = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: calls.append(1))
    model(images)
    return len(calls)


def test_when_it_folds():
    images = torch.randn(2, 3, 64, 64)
    plain, folding = pair()
    number = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert count_norms(plain, images) == number
    assert count_norms(folding, images) == 0
    learning = EfficientViT(TINY).train()
    assert count_norms(learning, images) == number
    with torch.no_grad():
        assert count_norms(pair()[1].eval(), images) == number


def saved_bytes(model, images):
    """Bytes that the backward pass keeps, but for parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr()
           for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor  # alive, so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_fewer_activations_are_kept():
    plain, folding = (EfficientViT('m4', norm_eval=True, fold_norm=fold).train()
                      for fold in (False, True))
    images = torch.randn(1, 3, 256, 256)
    assert saved_bytes(folding, images) < 0.65 * saved_bytes(plain, images)


def test_one_window_of_one_image_trains_exactly():
    """torch's BN takes such a gradient wrong on a CPU if it arrives as a transposed view."""
    model, images = EfficientViT(TINY, norm_eval=True, fold_norm=False).double().train(), None
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    images = torch.randn(1, 3, 100, 100, dtype=torch.double)
    layer = model.stages[0].blocks[0].attn.query_conv[0].norm.weight
    _, gradients = loss_and_gradients(model, images)
    analytic = gradients['stages.0.blocks.0.attn.query_conv.0.norm.weight']
    numeric = torch.zeros_like(layer)
    with torch.no_grad():
        for i in range(len(layer)):
            losses = []
            for step in (1e-5, -1e-5):
                layer[i] += step
                losses.append(sum(
                    (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()
                    for x in model(images)))
                layer[i] -= step
            numeric[i] = (losses[0] - losses[1]) / 2e-5
    torch.testing.assert_close(analytic, numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('side', [4, 20])
@pytest.mark.parametrize('learns', ['all', 'x', 'first', 'last', 'all but x'])
@pytest.mark.parametrize('form', ['relu', 'residual', 'neither'])
def test_a_chain_is_its_convolutions(form, learns, side):
    torch.manual_seed(0)
    layers = [ConvNorm(6, 8, 3, norm_cfg=dict(type='BN')), ConvNorm(8, 8, 3, groups=8,
              norm_cfg=dict(type='BN')), ConvNorm(8, 6, 1, norm_cfg=dict(type='BN'))]
    for layer in layers:
        layer.eval().double()
        nn.init.normal_(layer.norm.running_mean)
        nn.init.normal_(layer.norm.weight)
        nn.init.normal_(layer.norm.bias)
        layer.requires_grad_(learns in ('all', 'all but x')
                             or learns == 'first' and layer is layers[0]
                             or learns == 'last' and layer is layers[-1])
    x = torch.randn(2, 6, side, side, dtype=torch.double, requires_grad=learns in ('all', 'x'))
    inputs = [tensor for tensor in (x, *(p for layer in layers for p in layer.parameters()))
              if tensor.requires_grad]

    def plainly():
        y = layers[1].norm(layers[1].conv(layers[0].norm(layers[0].conv(x)).relu())).relu()
        y = layers[2].norm(layers[2].conv(y))
        return y.relu() if form == 'relu' else y + x if form == 'residual' else y

    def results(y):
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        once = torch.autograd.grad(y.sin().sum(), inputs, retain_graph=True)
        first = torch.autograd.grad((y * y * weights).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g * g.cos()).sum() for g in first), inputs)
        return [y, *first, *second, *once]

    before = x.detach().clone()
    found = results(convolve_folded(x, [layer._folded_conv() for layer in layers],
                                    relu=form == 'relu', residual=form == 'residual'))
    for a, b in zip(found, results(plainly()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert torch.equal(x, before)


def test_hooks_inside_a_chain_are_called():
    """Hooks are how gates and visualisers reach what is between two convolutions."""
    ffn = FeedForward(8, 16, norm_cfg=dict(type='BN')).eval()
    nn.init.normal_(ffn.project.norm.weight)
    x = torch.randn(2, 8, 20, 20)
    expected = ffn.add_to(x)
    assert 'FoldedChain' in expected.grad_fn.name()
    handle = ffn.project.register_forward_pre_hook(lambda _, given: (given[0] * 0,))
    assert not torch.allclose(ffn.add_to(x), expected)
    handle.remove()
    handle = ffn.register_forward_hook(lambda _, given, branch: branch * 0)
    assert torch.equal(ffn.add_to(x), x)
    handle.remove()
    assert torch.equal(ffn.add_to(x), expected)


def test_gradients_have_the_strides_of_the_weights():
    """Else DistributedDataParallel warns, and copies them."""
    model = EfficientViT(TINY, norm_eval=True).train().to(memory_format=torch.channels_last)
    sum(x.sum() for x in model(torch.randn(2, 3, 97, 131))).backward()
    different = [name for name, p in model.named_parameters() if p.grad.stride() != p.stride()]
    assert not different
