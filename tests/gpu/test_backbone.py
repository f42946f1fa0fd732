"""Backbone and neck compute on the device what they compute on the CPU in float64."""

import copy

import pytest
import torch
from random_models import SMALLEST, TINY, randomize, relative_error

from evit_mm.benchmark.memory import peak_bytes
from evit_mm.deployment import deploy
from evit_mm.deployment.compile import check_compiler, compiled
from evit_mm.models import ARCHS, EfficientViT, EfficientViTFPN

pytestmark = pytest.mark.cuda

SINGLE, DOUBLE = 1e-4, 1e-9
"""Bounds of rounding; cuDNN's Winograd convolutions lose a digit more than a CPU's."""


def on_cpu(maps):
    return [x.detach().cpu() for x in maps]


def step(model, image, **autocast):
    """Return loss and gradients of a training step, on the CPU."""
    model.zero_grad()
    with torch.autocast(image.device.type, enabled=bool(autocast), **autocast):
        maps = model(image)
    weights = [torch.linspace(-1, 1, x.numel(), dtype=image.dtype).view_as(x).to(image.device)
               for x in maps]
    loss = sum((x.to(image.dtype) * weight).mean() for x, weight in zip(maps, weights, strict=True))
    loss.backward()
    return loss.detach().cpu(), {name: parameter.grad.detach().cpu()
                                 for name, parameter in model.named_parameters()}


def distance(gradients, expected):
    """Return the norm of the difference of all gradients, relative to the expected ones."""
    difference = sum((gradients[name].double() - value.double()).square().sum()
                     for name, value in expected.items())
    return (difference / sum(value.double().square().sum() for value in expected.values())).sqrt()


@pytest.mark.parametrize('arch', ARCHS)
@torch.no_grad()
def test_all_variants(arch, device):
    model = randomize(EfficientViT(arch, stem_strides=(4, 8))).eval()
    image = torch.randn(2, 3, 200, 321)
    exact = copy.deepcopy(model).double()(image.double())
    model.to(device)
    image = image.to(device)
    outputs = model(image)
    assert all(x.device.type == device.type for x in outputs)
    assert relative_error(on_cpu(outputs), exact) < SINGLE
    deployed = deploy(copy.deepcopy(model))
    assert relative_error(on_cpu(deployed(image)), exact) < SINGLE
    for dtype, bound in ((torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
        with torch.autocast(device.type, dtype=dtype):
            autocast = model(image), deployed(image)
        half = (copy.deepcopy(model).to(dtype)(image.to(dtype)),
                copy.deepcopy(deployed).to(dtype)(image.to(dtype)))
        for maps in (*autocast, *half):
            for rounded, expected in zip(on_cpu(maps), exact, strict=True):
                assert rounded.isfinite().all()
                assert (rounded.double() - expected).norm() < bound * expected.norm()
    assert relative_error(on_cpu(model.double()(image.double())), exact) < DOUBLE


@pytest.mark.parametrize('size', [(1, 1), (64, 64), (33, 700), (449, 97)], ids=str)
@torch.no_grad()
def test_sizes_and_layouts(size, device):
    model = randomize(EfficientViT(TINY)).eval()
    image = torch.randn(2, 3, *size)
    exact = copy.deepcopy(model).double()(image.double())
    model.to(device)
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout)
        laid_out = image.to(device).contiguous(memory_format=layout)
        assert relative_error(on_cpu(model(laid_out)), exact) < SINGLE
        assert relative_error(on_cpu(deploy(copy.deepcopy(model))(laid_out)), exact) < SINGLE


@torch.no_grad()
def test_the_deploy_form_moves_between_devices(device):
    model = randomize(EfficientViT(TINY)).eval()
    image = torch.randn(1, 3, 97, 130)
    expected = model(image)
    moved = deploy(copy.deepcopy(model)).to(device)
    there = deploy(copy.deepcopy(model).to(device))
    for deployed in (moved, there):
        assert relative_error(on_cpu(deployed(image.to(device))), expected) < SINGLE
    assert relative_error(there.cpu()(image), expected) < SINGLE


@torch.no_grad()
def test_the_neck(device):
    neck = EfficientViTFPN([16, 24, 32], 32, 6, num_extra_trans_convs=2)
    neck.init_weights()
    maps = [torch.randn(2, channels, *size)
            for channels, size in ((16, (25, 42)), (24, (13, 21)), (32, (7, 11)))]
    exact = copy.deepcopy(neck).double()([x.double() for x in maps])
    neck.to(device)
    assert relative_error(on_cpu(neck([x.to(device) for x in maps])), exact) < SINGLE
    deployed = deploy(neck.eval())
    assert relative_error(on_cpu(deployed([x.to(device) for x in maps])), exact) < SINGLE


@pytest.mark.parametrize('options', [
    dict(), dict(with_cp=True), dict(fold_norm=False), dict(fold_norm=False, with_cp=True),
    dict(norm_eval=False), dict(norm_eval=False, with_cp=True)], ids=str)
def test_training(options, device):
    """A folded, recomputed or plain training step has the gradients of the plain one on the CPU."""
    options = dict(norm_eval=True) | options
    reference = EfficientViT(TINY, fold_norm=False, norm_eval=options['norm_eval'])
    randomize(reference).train()
    model = EfficientViT(TINY, **options)
    model.load_state_dict(reference.state_dict())
    model.train().to(device)
    image = torch.randn(2, 3, 97, 130)
    expected_loss, expected = step(copy.deepcopy(reference).double(), image.double())

    # Statistics of the few values of the last stage amplify rounding hundreds of times.
    single = 1e-3 if options['norm_eval'] else 1e-2
    for layout in (torch.contiguous_format, torch.channels_last):
        laid_out = image.to(device).contiguous(memory_format=layout)
        loss, gradients = step(copy.deepcopy(model), laid_out)
        assert loss == pytest.approx(expected_loss.item(), abs=1e-3)
        assert distance(gradients, expected) < single
    loss, gradients = step(copy.deepcopy(model).double(), image.to(device).double())
    assert distance(gradients, expected) < 1e-8
    for dtype, bound in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
        loss, gradients = step(copy.deepcopy(model), image.to(device), dtype=dtype)
        assert loss.isfinite()
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
        if options['norm_eval']:
            assert distance(gradients, expected) < bound


def test_recomputation_and_folding_save_memory(device):
    # Large enough that cuDNN's workspaces don't matter.
    shape = (4, 3, 512, 512) if device.type == 'cuda' else (2, 3, 256, 256)
    image = torch.randn(shape, device=device)
    peaks = {}
    for name, options in dict(plain=dict(fold_norm=False), folded=dict(),
                              recomputed=dict(with_cp=True)).items():
        model = randomize(EfficientViT('m0', norm_eval=True, **options)).train().to(device)
        step(model, image)
        model.zero_grad()

        def run(model=model):
            sum(x.square().mean() for x in model(image)).backward()

        run()  # on CUDA, workspaces are allocated once
        model.zero_grad()
        peaks[name] = peak_bytes(run, device)
    assert peaks['recomputed'] < peaks['folded'] < peaks['plain']


def test_compilation(device):
    check_compiler(device.type, 'this test')
    torch.compiler.reset()
    model = randomize(EfficientViT(SMALLEST, norm_eval=True)).to(device)
    image = torch.randn(2, 3, 97, 130, device=device)
    plain = copy.deepcopy(model).train()
    expected_loss, expected = step(plain, image)
    training = copy.deepcopy(model).train()
    training.forward = compiled(training.forward, device.type, inference=False)
    for _ in range(2):
        loss, gradients = step(training, image)
        assert loss == pytest.approx(expected_loss.item(), abs=1e-3)
        assert distance(gradients, expected) < 1e-3
    deployed = deploy(model.eval())
    fast = compiled(copy.deepcopy(deployed).forward, device.type, inference=True)
    with torch.inference_mode():
        for size in ((97, 130), (64, 96)):  # a second size is a second graph
            other = torch.randn(1, 3, *size, device=device)
            assert relative_error(fast(other), deployed(other)) < SINGLE


@torch.no_grad()
def test_nothing_waits_for_the_device(cuda):
    """Neither form copies to the CPU or back in its forward pass, nor does a training step."""
    image = torch.randn(2, 3, 224, 224, device=cuda)
    plain = randomize(EfficientViT('m0', norm_eval=True)).to(cuda)
    for model in (copy.deepcopy(plain).eval(), deploy(copy.deepcopy(plain).eval())):
        model(image)  # libraries start
        torch.cuda.set_sync_debug_mode('error')
        try:
            model(image)
        finally:
            torch.cuda.set_sync_debug_mode('default')
    with torch.enable_grad():
        training = plain.train()
        sum(x.mean() for x in training(image)).backward()
        torch.cuda.set_sync_debug_mode('error')
        try:
            sum(x.mean() for x in training(image)).backward()
        finally:
            torch.cuda.set_sync_debug_mode('default')
