"""Hooks, complexity counters, pickle, tracing and exporters work on the plain and deployed form."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from random_models import TINY, randomize, relative_error
from torch import nn
from torch.export import Dim

from evit_mm.deployment import deploy
from evit_mm.models import EfficientViT

FORMS = ['plain', 'deployed']
TORCH = tuple(map(int, torch.__version__.split('.')[:2]))
needs_present_exporter = pytest.mark.skipif(
    TORCH < (2, 11), reason='torch.export of torch 2.6 can\'t export this model')


@pytest.fixture(params=FORMS)
def model(request):
    """A small backbone in eval mode; gradients are enabled, and its parameters may learn."""
    plain = randomize(EfficientViT(TINY)).eval()
    return deploy(plain) if request.param == 'deployed' else plain


def called_modules(model, image):
    """Run a model with a forward hook on every module, and return the modules called."""
    called = set()
    handles = [module.register_forward_hook(lambda m, *_: called.add(m))
               for module in model.modules()]
    model(image)
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize('with_gradients', [True, False])
def test_every_forward_hook_fires_in_eval_mode(with_gradients):
    model = randomize(EfficientViT('m0')).eval()
    with torch.set_grad_enabled(with_gradients):
        called = called_modules(model, torch.randn(1, 3, 64, 64))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 90
    not_called = {name for name, module in model.named_modules() if module not in called}
    containers = {name for name, module in model.named_modules()
                  if type(module) in (nn.ModuleList,)}
    assert not_called == containers


def test_outputs_do_not_depend_on_grad_mode_or_hooks(model):
    image = torch.randn(1, 3, 64, 96)
    with_gradients = [x.detach() for x in model(image)]
    with torch.no_grad():
        expected = model(image)
        assert all(map(torch.equal, with_gradients, expected))
        model.stages[0].blocks[0].ffn1.register_forward_hook(lambda *_: None)
        assert all(map(torch.equal, model(image), expected))
    with torch.inference_mode():
        assert all(map(torch.equal, model(image), expected))


def test_complexity_of_m0():
    """mmengine's counter sees every convolution and matrix product: 87.7 MFLOPs at 224."""
    info = get_model_complexity_info(EfficientViT('m0').eval(), (3, 224, 224), show_table=False,
                                     show_arch=False)
    assert info['flops'] == pytest.approx(87.7e6, rel=5e-3)
    assert info['params'] == sum(p.numel() for p in EfficientViT('m0').parameters())


@torch.no_grad()
def test_pickle_and_torch_save(model):
    image = torch.randn(1, 3, 64, 96)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False),
                 copy.deepcopy(model)):
        assert all(map(torch.equal, twin(image), model(image)))
        twin.load_state_dict(randomize(EfficientViT(TINY), seed=1).state_dict())  # its own hooks
        assert not torch.equal(twin(image)[2], model(image)[2])


@pytest.mark.filterwarnings('ignore')
def test_jit_trace(model):
    traced = torch.jit.trace(model, torch.randn(1, 3, 96, 128))
    image = torch.randn(1, 3, 96, 128)
    assert relative_error(traced(image), model(image)) < 1e-6


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('size', [256, pytest.param(224, marks=pytest.mark.slow)])
@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(model, size, dynamo, tmp_path):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    if dynamo and not model.deploy and TORCH < (2, 11):
        pytest.skip('the exporter of torch 2.6 can\'t translate BN')
    image = torch.randn(1, 3, size, size)
    path = str(tmp_path / 'model.onnx')
    torch.onnx.export(model, (image,), path, dynamo=dynamo,
                      **(dict(verbose=False) if dynamo else {}))
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    outputs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        assert relative_error(map(torch.from_numpy, outputs), model(image)) < 1e-5


@needs_present_exporter
def test_torch_export_with_bounded_sizes(model):
    """From 449 pixels on, every stage has two windows a side or more; torch specializes on one."""
    sizes = {0: Dim('batch', min=1, max=8), 2: Dim('height', min=449, max=1344),
             3: Dim('width', min=449, max=1344)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch about its own pytree
        program = torch.export.export(model, (torch.randn(2, 3, 640, 704),),
                                      dynamic_shapes=(sizes,))
    exported = program.module()
    with torch.no_grad():
        for shape in ((1, 3, 449, 601), (3, 3, 577, 450), (1, 3, 800, 1344)):
            image = torch.randn(shape)
            assert relative_error(exported(image), model(image)) < 1e-6


@needs_present_exporter
def test_torch_export_at_one_size(model):
    image = torch.randn(1, 3, 224, 224)
    exported = torch.export.export(model, (image,)).module()
    assert relative_error(exported(image), model(image)) < 1e-6
