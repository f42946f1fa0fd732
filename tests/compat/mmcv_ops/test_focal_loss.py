"""Focal losses."""

import importlib
import math

import pytest
import torch
from torch.nn import functional

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')


def reference_focal_loss(logits, target, weight, gamma, alpha):
    """mmdet's focal loss of one-hot targets; ``weight`` is per row. Shape (N, C)."""
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    classes = logits.size(1)
    one_hot = functional.one_hot(target, classes + 1)[:, :classes]
    return py_sigmoid_focal_loss(logits, one_hot, weight, gamma, alpha, reduction='none')


def focal_case(dtype=torch.float64, device='cpu', background=True):
    """Logits of shape (40, 5) and class indices of shape (40,)."""
    generator = torch.Generator().manual_seed(4)
    logits = 4 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    target = torch.arange(40) % (6 if background else 5)
    return logits.to(device, dtype), target.to(device)


def test_focal_loss_by_hand(device):
    # At x = 0 both p and 1 - p are 1/2. With gamma = 2 and alpha = 1/4 the own class costs
    # 1/4 * (1/2)^2 * ln 2 = 0.04332, any other 3/4 * (1/2)^2 * ln 2 = 0.12997. The slopes are
    # -1/4 * (1/2)^2 * (1/2 + 2 * 1/2 * ln 2) = -0.07457 and, with 3/4, 0.22372.
    logits = torch.zeros(2, 2, device=device, requires_grad=True)
    target = torch.tensor([0, 2], device=device)  # 2 is background: no class is the row's own
    loss = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    own, other = math.log(2) / 16, math.log(2) * 3 / 16
    assert torch.allclose(loss.cpu(), torch.tensor([[own, other], [other, other]]), atol=1e-6)
    loss.sum().backward()
    own, other = -(.5 + math.log(2)) / 16, (.5 + math.log(2)) * 3 / 16
    assert own == pytest.approx(-0.07457, abs=1e-5) and other == pytest.approx(.22372, abs=1e-5)
    assert logits.grad is not None
    assert torch.allclose(logits.grad.cpu(), torch.tensor([[own, other], [other, other]]),
                          atol=1e-6)


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2., .25), (0., .5), (1.5, .9)])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_focal_loss_against_mmdet(device, reduction, gamma, alpha, weighted, dtype, tolerance):
    pytest.importorskip('mmdet')
    if COMPILED and dtype == torch.float64:
        pytest.skip('the compiled kernel takes the exponential in float32')
    if COMPILED:
        tolerance = 2e-3  # its log(1 - p) has lost most digits of 1 - p where p is close to 1
    # The compiled kernel reads beyond the end of the weights for a background row.
    logits, target = focal_case(background=not (COMPILED and weighted))
    weight = rows = None
    if weighted:
        weight = torch.tensor([.5, 2., 1., 3., .25], dtype=torch.float64)
        rows = torch.cat((weight, weight.new_ones(1)))[target]
    logits.requires_grad_()
    expected = reference_focal_loss(logits, target, rows, gamma, alpha)
    seed = torch.rand(40, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    if reduction == 'none':
        expected = expected * seed
    slope, = torch.autograd.grad(expected.sum() / (40 if reduction == 'mean' else 1), logits)

    copy = logits.detach().to(device, dtype).requires_grad_()
    if weight is not None:
        weight = weight.to(device, dtype)
    loss = mmcv_functions.sigmoid_focal_loss(copy, target.to(device), gamma, alpha, weight,
                                             reduction)
    assert loss.dtype == dtype
    if reduction == 'none':
        loss = loss * seed.to(device, dtype)
    else:  # mmcv's mean is one over the rows, not over the entries
        expected = expected.sum() / (40 if reduction == 'mean' else 1)
    assert torch.allclose(loss.detach().cpu().double(), expected.detach(),
                          rtol=tolerance, atol=tolerance)
    loss.sum().backward()
    assert copy.grad is not None and slope.abs().max() > 1e-3
    assert torch.allclose(copy.grad.cpu().double(), slope, rtol=tolerance, atol=tolerance)


@stand_in_only
@pytest.mark.parametrize('gamma', [0., 1.5, 2.])
def test_focal_loss_gradient(device, gamma):
    logits, target = focal_case(device=device)
    weight = torch.tensor([.5, 2., 1., 3., .25], dtype=torch.float64, device=device)

    def loss(x):
        return mmcv_functions.sigmoid_focal_loss(x, target, gamma, .25, weight, 'none')

    assert torch.autograd.gradcheck(loss, logits.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_focal_loss_of_extreme_logits(device, dtype):
    if COMPILED and dtype == torch.float16:
        pytest.skip('the compiled kernel takes the logarithm of 0 in float16')
    logits = torch.tensor([[100., -100.], [-100., 100.]], device=device, dtype=dtype,
                          requires_grad=True)
    target = torch.tensor([0, 0], device=device)
    loss = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    loss.sum().backward()
    # The first row is right and costs nothing. In the second p is 0 at the own class and 1 at
    # the other, where -ln p and -ln(1 - p) are 100: 1/4 * 100 and 3/4 * 100, with slopes of
    # -1/4 and 3/4. The compiled kernel cuts the logarithm off at ln(FLT_MIN) = -87.3.
    assert torch.isfinite(loss).all()
    assert logits.grad is not None
    assert torch.allclose(logits.grad.cpu().float(), torch.tensor([[0., 0.], [-.25, .75]]),
                          atol=1e-6)
    most = 87.3365 if COMPILED else 100.
    assert torch.allclose(loss.detach().cpu().float(),
                          torch.tensor([[0., 0.], [most / 4, most * 3 / 4]]), atol=1e-3)


@stand_in_only
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_loss_in_half_precision(device, dtype):
    logits, target = focal_case(dtype, device)
    logits.requires_grad_()
    exact = logits.detach().float().requires_grad_()
    loss = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    expected = mmcv_functions.sigmoid_focal_loss(exact, target, 2., .25, None, 'none')
    assert loss.dtype == dtype
    assert torch.equal(loss, expected.to(dtype))  # computed in float32, rounded once
    loss.backward(torch.ones_like(loss))
    expected.sum().backward()
    assert logits.grad is not None and exact.grad is not None
    assert torch.equal(logits.grad, exact.grad.to(dtype))


@stand_in_only
def test_focal_loss_weight_leaves_background_alone(device):
    logits = torch.zeros(2, 2, device=device)
    target = torch.tensor([1, 2], device=device)
    weight = torch.tensor([5., 10.], device=device)
    plain = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    weighted = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, weight, 'none')
    assert torch.allclose(weighted[0], 10 * plain[0])
    assert torch.equal(weighted[1], plain[1])


def test_focal_loss_rejects_an_index_beyond_background(device):
    if COMPILED and device == 'cpu':
        pytest.skip('the compiled mmcv has no kernel of it for a CPU')
    logits = torch.zeros(2, 3, device=device)
    target = torch.tensor([0, 4], device=device)
    with pytest.raises((ValueError, RuntimeError), match='target') as info:
        mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    if not COMPILED:
        assert 'class index 4, but the input has only 3 classes' in str(info.value)


@stand_in_only
@pytest.mark.parametrize('shape', [(0, 3), (2, 0)])
def test_focal_loss_of_nothing(device, shape):
    logits = torch.zeros(shape, device=device, requires_grad=True)
    target = torch.zeros(shape[0], dtype=torch.long, device=device)
    loss = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    assert loss.shape == shape
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.shape == shape


def test_focal_loss_as_mmdet_calls_it(device):
    focal_loss = pytest.importorskip('mmdet.models.losses.focal_loss')
    logits, target = focal_case(torch.float32, device)
    rows = torch.linspace(0, 2, 40, device=device)
    loss = focal_loss.sigmoid_focal_loss(logits, target, rows, avg_factor=7)
    expected = reference_focal_loss(logits, target, rows, 2., .25).sum() / 7
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3 if COMPILED else 1e-5)


# --- softmax focal loss -----------------------------------------------------------------------


def reference_softmax_focal_loss(logits, target, weight, gamma, alpha):
    """Focal loss of exclusive classes, shape (N,)."""
    logarithm = logits.log_softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = -alpha * (1 - logarithm.exp()) ** gamma * logarithm
    return torch.where(target >= 0, loss if weight is None else loss * weight[target], 0.)


def test_softmax_focal_loss_by_hand(device):
    # p is 1/4 for each class: -1/2 * (3/4)^2 * ln(1/4) = 0.3899, and nothing for the second row.
    logits = torch.zeros(2, 4, device=device, requires_grad=True)
    target = torch.tensor([1, -1], device=device)
    loss = mmcv_functions.softmax_focal_loss(logits, target, 2., .5, None, 'none')
    assert loss.tolist() == pytest.approx([9 / 32 * math.log(4), 0.])
    loss = mmcv_functions.softmax_focal_loss(logits, target, 2., .5, None, 'sum')
    loss.backward()
    # d/dp = 1/2 * (2 * 3/4 * ln(1/4) - (3/4)^2 * 4), dp/dx = p * (1 - p) and -p * p elsewhere.
    slope = (1.5 * math.log(.25) - 2.25) / 2
    assert logits.grad[0].tolist() == pytest.approx([-slope / 16, slope * 3 / 16, -slope / 16,
                                                     -slope / 16])
    assert logits.grad[1].abs().max() == 0


@stand_in_only
@pytest.mark.parametrize('gamma', [0., .5, 2.])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_softmax_focal_loss_against_log_softmax(device, gamma, weighted, reduction):
    logits, target = focal_case(device=device, background=False)
    weight = torch.tensor([.5, 2., 1., 3., .25], dtype=torch.float64, device=device)
    arguments = (gamma, .3, weight if weighted else None, reduction)
    loss = mmcv_functions.softmax_focal_loss(logits.requires_grad_(), target, *arguments)
    expected = reference_softmax_focal_loss(logits, target, weight if weighted else None, gamma, .3)
    expected = expected.sum() / (40 if reduction == 'mean' else 1)
    assert torch.allclose(loss, expected)
    grads = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    assert torch.allclose(*grads) and grads[0].abs().max() > 1e-3


@stand_in_only
def test_softmax_focal_loss_of_extreme_logits_and_classes(device):
    logits = torch.tensor([[200., 0.], [0., 200.]], device=device, requires_grad=True)
    target = torch.tensor([0, 0], device=device)
    loss = mmcv_functions.softmax_focal_loss(logits, target, .5, 1., None, 'sum')
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert logits.grad[0].abs().max() == 0
    with pytest.raises(ValueError, match='class index 2, but the input has only 2 classes'):
        mmcv_functions.softmax_focal_loss(logits, target + 2)
    empty = torch.zeros(0, 3, device=device, requires_grad=True)
    loss = mmcv_functions.softmax_focal_loss(empty, target[:0], 2., .25, None, 'sum')
    loss.backward()
    assert loss.item() == 0


@stand_in_only
def test_softmax_focal_loss_in_half_precision(device):
    logits, target = focal_case(torch.float16, device, background=False)
    loss = mmcv_functions.softmax_focal_loss(logits.requires_grad_(), target, 2., .25, None, 'none')
    expected = reference_softmax_focal_loss(logits.detach().float(), target, None, 2., .25)
    assert loss.dtype == torch.float16
    assert torch.allclose(loss.float(), expected, rtol=.01, atol=1e-2)  # mmcv rounds the softmax
    # With 'none', mmcv's backward pass fails.
    mmcv_functions.softmax_focal_loss(logits, target, 2., .25, None, 'sum').backward()
    assert logits.grad.dtype == torch.float16
