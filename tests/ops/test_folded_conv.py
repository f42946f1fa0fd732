"""Training through folded convolutions has the losses and gradients of convolution and BN."""

import pytest
import torch
from random_models import TINY, randomize
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from evit_mm.models import EfficientViT
from evit_mm.models.layers import ConvNorm


def pair(**options):
    """Build a plain and a folding backbone in training mode, with the same random weights."""
    options = dict(arch=TINY, norm_eval=True, **options)
    plain = randomize(EfficientViT(fold_norm=False, **options))
    folding = EfficientViT(**options)
    folding.load_state_dict(plain.state_dict())
    return plain.train(), folding.train()


def loss_and_gradients(model, images):
    model.zero_grad()
    loss = sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()
               for x in model(images))
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_training(plain, folding, images, tolerance):
    expected_loss, expected = loss_and_gradients(plain, images)
    loss, gradients = loss_and_gradients(folding, images)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=0)
    for name, gradient in expected.items():
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


def frozen_layer(kernel_size, **options):
    """Build a layer in training mode whose BN is frozen."""
    norm_cfg = dict(type='BN', **options.pop('norm', {}))
    layer = randomize(ConvNorm(4, 8, kernel_size, norm_cfg=norm_cfg, **options)).double().train()
    layer.norm.eval()
    return layer


@pytest.mark.parametrize('learns', [
    'x weight gamma beta', 'x', 'weight', 'gamma', 'beta', 'x beta', 'weight gamma'])
@pytest.mark.parametrize('options', [
    dict(kernel_size=1), dict(kernel_size=3), dict(kernel_size=3, groups=4),
    dict(kernel_size=1, groups=4), dict(kernel_size=3, stride=2)], ids=str)
def test_every_gradient_of_a_layer(options, learns):
    layer = frozen_layer(**options)
    tensors = dict(x=torch.randn(2, 4, 9, 10, dtype=torch.double), weight=layer.conv.weight,
                   gamma=layer.norm.weight, beta=layer.norm.bias)
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in learns.split())
    inputs = [tensors[name] for name in learns.split()]
    results = []
    for layer.fold_norm in (False, True):
        y = layer(tensors['x'])
        first = torch.autograd.grad((y * y.cos()).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g * g.cos()).sum() for g in first), inputs)
        results.append([y, *first, *second])
    for folded, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-9)


def test_a_norm_without_scale_and_shift():
    layer = frozen_layer(1, norm=dict(affine=False))
    nn.init.normal_(layer.norm.running_mean)
    x = torch.randn(2, 4, 5, 5, dtype=torch.double)
    gradients = [torch.autograd.grad(layer(x).square().sum(), layer.conv.weight)[0]
                 for layer.fold_norm in (False, True)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = frozen_layer(3).float()
    x = torch.randn(2, 4, 9, 10, requires_grad=True)
    results = []
    for layer.fold_norm in (False, True):
        layer.zero_grad()
        x.grad = None
        with torch.autocast('cpu', dtype):
            y = layer(x)
        y.float().square().mean().backward()
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for folded, plain in zip(results[1], results[0], strict=True):
        assert folded.dtype == plain.dtype
        assert (folded - plain).norm() < 0.02 * plain.norm()


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


def test_folds_only_in_training_with_a_frozen_bn():
    def norms_called(model):
        calls = []
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda *_: calls.append(1))
        model(torch.randn(2, 3, 64, 64))
        return len(calls)

    plain, folding = pair()
    number = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert norms_called(plain) == number
    assert norms_called(folding) == 0
    assert norms_called(EfficientViT(TINY).train()) == number  # learns its statistics
    assert norms_called(pair()[1].eval()) == number  # gradients are enabled
    folding = pair()[1]
    folding.stages[0].blocks[0].ffn1.expand.norm.train()  # thawed by hand
    assert norms_called(folding) == 1


def saved_bytes(model, images):
    """Return the bytes that the backward pass keeps, without parameters and buffers."""
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
    """A frozen BN of torch computes a wrong gradient on a CPU from a transposed view of it."""
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


def test_gradients_have_the_strides_of_the_weights():
    """Else DistributedDataParallel warns, and copies them."""
    model = EfficientViT(TINY, norm_eval=True).train().to(memory_format=torch.channels_last)
    sum(x.sum() for x in model(torch.randn(2, 3, 97, 131))).backward()
    different = [name for name, p in model.named_parameters() if p.grad.stride() != p.stride()]
    assert not different
