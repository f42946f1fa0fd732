"""The operators behind ``mmcv.ops``: evit_mm's stand-in, or a compiled mmcv where there is one.

What both provide is tested on whichever is in use. ``stand_in_only`` marks what only the
stand-in does, ``compiled_mmcv`` what only a compiled extension does.
"""

import importlib
import importlib.machinery
import math
import sys
import types

import pytest
import torch
from torch.nn import functional

import evit_mm.compat.mmcv_ops as mmcv_ops

COMPILED = not mmcv_ops.install()

mmcv = pytest.importorskip('mmcv')
mmcv_functions = importlib.import_module('mmcv.ops')

stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=[pytest.mark.cuda, pytest.mark.skipif(
        not torch.cuda.is_available(), reason='needs a CUDA device')]),
]
FOCAL_DEVICES = [
    pytest.param('cpu', marks=pytest.mark.skipif(
        COMPILED, reason='the compiled sigmoid_focal_loss has no CPU kernel')),
    DEVICES[1],
]


# --- installation ---------------------------------------------------------------------------


@pytest.fixture
def clean_imports():
    """Forget mmcv for one test, and bring back the modules that all others share."""
    names = ('mmcv', 'mmcv._ext')
    saved = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(saved)


def write_mmcv(folder, extension):
    package = folder / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    if extension:
        (package / '_ext.py').write_text('')


@pytest.mark.compiled_mmcv
@pytest.mark.skipif(not COMPILED, reason='mmcv is installed without its compiled operators')
def test_a_compiled_extension_is_in_use_and_stays():
    extension = importlib.import_module('mmcv._ext')
    assert extension.__file__.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
    assert mmcv_ops.install() is False
    assert sys.modules['mmcv._ext'] is extension
    assert importlib.import_module('mmcv.ops.nms').ext_module is extension


@stand_in_only
def test_mmcv_uses_the_stand_in():
    extension = sys.modules['mmcv._ext']
    assert isinstance(extension, types.ModuleType)
    assert importlib.import_module('mmcv.ops.nms').ext_module is extension
    assert mmcv._ext is extension
    assert extension.nms is mmcv_ops.nms


@pytest.mark.parametrize('name', ['mmcv.ops', 'mmdet.models', 'mmseg.models'])
def test_what_needs_the_extension_imports(name):
    pytest.importorskip(name.split('.')[0])
    assert importlib.import_module(name).__name__ == name


def test_install_twice_changes_nothing():
    before = importlib.import_module('mmcv._ext')
    assert mmcv_ops.install() is not COMPILED
    assert sys.modules['mmcv._ext'] is before


def test_install_keeps_an_extension_that_is_loaded(monkeypatch):
    other = types.ModuleType('mmcv._ext')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', other)
    bound = vars(mmcv).get('_ext')
    assert mmcv_ops.install() is False
    assert sys.modules['mmcv._ext'] is other
    assert vars(mmcv).get('_ext') is bound


def test_install_keeps_an_extension_that_can_be_found(clean_imports, tmp_path, monkeypatch):
    write_mmcv(tmp_path, extension=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert mmcv_ops.install() is False
    assert 'mmcv._ext' not in sys.modules
    assert importlib.import_module('mmcv._ext').__file__ == str(tmp_path / 'mmcv' / '_ext.py')


def test_install_serves_an_mmcv_that_is_imported_later(clean_imports, tmp_path, monkeypatch):
    write_mmcv(tmp_path, extension=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert mmcv_ops.install() is True
    assert 'mmcv' not in sys.modules
    stand_in = importlib.import_module('mmcv._ext')
    assert stand_in.nms is mmcv_ops.nms
    package = importlib.import_module('mmcv')
    assert mmcv_ops.install() is True
    assert package._ext is stand_in is sys.modules['mmcv._ext']


def test_install_does_nothing_without_mmcv(clean_imports, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)  # as good as not installed
    assert mmcv_ops.install() is False
    assert 'mmcv._ext' not in sys.modules


@stand_in_only
def test_probes_for_compiled_operators_find_none():
    from mmcv.utils.ext_loader import check_ops_exist
    from mmengine.utils.dl_utils import mmcv_full_available

    assert check_ops_exist() is False
    assert mmcv_full_available() is False


@stand_in_only
def test_environment_report_says_what_is_in_use():
    from mmcv.utils import collect_env

    report = collect_env()
    assert report['MMCV Compiler'].startswith('not compiled (evit_mm stand-in on torchvision')
    assert report['MMCV CUDA Compiler'].startswith('not compiled (torch was built for ')


# --- operators that are missing --------------------------------------------------------------


def call_deform_conv():
    return mmcv_functions.deform_conv2d(
        torch.ones(1, 1, 3, 3), torch.zeros(1, 18, 1, 1), torch.ones(1, 1, 3, 3))


def call_modulated_deform_conv():
    return mmcv_functions.modulated_deform_conv2d(
        torch.ones(1, 1, 3, 3), torch.zeros(1, 18, 1, 1), torch.ones(1, 9, 1, 1),
        torch.ones(1, 1, 3, 3), None, 1, 0, 1, 1, 1)


MISSING = {
    'softnms': lambda: mmcv_functions.soft_nms(torch.tensor([[0., 0., 2., 2.]]),
                                               torch.tensor([.5])),
    'nms_match': lambda: mmcv_functions.nms_match(torch.tensor([[0., 0., 2., 2., .5]]), .5),
    'nms_rotated': lambda: mmcv_functions.nms_rotated(torch.tensor([[1., 1., 2., 2., 0.]]),
                                                      torch.tensor([.5]), .5),
    'roi_pool_forward': lambda: mmcv_functions.roi_pool(
        torch.ones(1, 1, 4, 4), torch.tensor([[0., 0., 0., 2., 2.]]), 2),
    'softmax_focal_loss_forward': lambda: mmcv_functions.softmax_focal_loss(
        torch.zeros(1, 2), torch.tensor([0])),
    'deform_conv_forward': call_deform_conv,
    'modulated_deform_conv_forward': call_modulated_deform_conv,
}


@stand_in_only
@pytest.mark.parametrize('name', MISSING)
def test_a_missing_operator_is_named_when_it_is_called(name):
    with pytest.raises(mmcv_ops.MissingOpError, match=f"mmcv op '{name}' is not available") as info:
        MISSING[name]()
    assert 'pip install mmcv==2.1.0' in str(info.value)
    assert torch.__version__ in str(info.value)


@stand_in_only
def test_the_error_is_a_not_implemented_error():
    assert issubclass(mmcv_ops.MissingOpError, NotImplementedError)


@stand_in_only
def test_a_missing_operator_can_be_asked_for_but_a_dunder_cannot():
    extension = sys.modules['mmcv._ext']
    assert extension.carafe_forward.__name__ == 'carafe_forward'
    assert not hasattr(extension, '__path__')
    with pytest.raises(AttributeError, match='__wrapped__'):
        _ = extension.__wrapped__


@stand_in_only
def test_max_pooling_is_named():
    image = torch.ones(1, 1, 4, 4)
    rois = torch.tensor([[0., 0., 0., 2., 2.]])
    with pytest.raises(mmcv_ops.MissingOpError,
                       match="RoIAlign with pool_mode='max' is not available"):
        mmcv_functions.RoIAlign(2, pool_mode='max')(image, rois)
    with pytest.raises(mmcv_ops.MissingOpError, match="RoIAlign with pool_mode='max'"):
        mmcv_ops.roi_align_backward(torch.ones(1, 1, 2, 2), rois, image, image,
                                    torch.zeros(1, 1, 4, 4), 2, 2, 1., 0, 0, True)


# --- non-maximum suppression -----------------------------------------------------------------

# The areas are 100, 80 and 100. A and B overlap in 80, so their IoU is 80 / (100 + 80 - 80) =
# 0.8. A and C overlap in 5 * 10 = 50, which makes 50 / (100 + 100 - 50) = 1/3. B and C overlap
# in 5 * 8 = 40, which makes 40 / (80 + 100 - 40) = 2/7 = 0.2857.
ABC = [[0., 0., 10., 10.], [0., 0., 10., 8.], [5., 0., 15., 10.]]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('scores', 'threshold', 'kept'), [
    ([.9, .8, .7], .85, [0, 1, 2]),
    ([.9, .8, .7], .75, [0, 2]),
    ([.9, .8, .7], .30, [0]),
    ([.7, .8, .9], .30, [2, 1]),  # C drops A (1/3), but not B (0.2857)
    ([.8, .9, .7], .30, [1, 2]),  # B drops A (0.8); A no longer drops C
])
def test_nms_by_hand(device, scores, threshold, kept):
    boxes = torch.tensor(ABC, device=device)
    detections, indices = mmcv_functions.nms(boxes, torch.tensor(scores, device=device), threshold)
    assert indices.dtype == torch.int64
    assert indices.tolist() == kept
    expected = torch.tensor([[*ABC[k], scores[k]] for k in kept], device=device)
    assert torch.equal(detections, expected)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('offset', 'kept'), [(0, [0, 1]), (1, [0])])
def test_nms_offset_counts_the_last_pixel(device, offset, kept):
    # Widths and heights of 9 * 9 and 9 * 4: the IoU is 36 / 81 = 0.444. With the offset they
    # are 10 * 10 and 10 * 5, which makes 50 / 100 = 0.5.
    boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 4.]], device=device)
    scores = torch.tensor([.9, .8], device=device)
    assert mmcv_functions.nms(boxes, scores, .47, offset=offset)[1].tolist() == kept


@pytest.mark.parametrize('device', DEVICES)
def test_nms_offset_joins_boxes_that_only_touch(device):
    # 10 * 1 pixels each, side by side, sharing the column x = 9: the overlap is 0 * 0 without
    # the offset, and with it 1 * 1, which makes an IoU of 1 / (10 + 10 - 1) = 0.0526.
    boxes = torch.tensor([[0., 0., 9., 0.], [9., 0., 18., 0.]], device=device)
    scores = torch.tensor([.9, .8], device=device)
    assert mmcv_functions.nms(boxes, scores, .05, offset=0)[1].tolist() == [0, 1]
    assert mmcv_functions.nms(boxes, scores, .05, offset=1)[1].tolist() == [0]
    assert mmcv_functions.nms(boxes, scores, .06, offset=1)[1].tolist() == [0, 1]


@pytest.mark.parametrize('device', DEVICES)
def test_nms_keeps_a_box_at_the_threshold(device):
    # The IoU is 60 / 100, exactly 0.6 in float32; only more than the threshold drops a box.
    # float32(0.6) exceeds the Python number 0.6, so the threshold must be rounded as well.
    boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 6.]], device=device)
    scores = torch.tensor([.9, .8], device=device)
    assert mmcv_functions.nms(boxes, scores, .6)[1].tolist() == [0, 1]
    assert mmcv_functions.nms(boxes, scores, .59)[1].tolist() == [0]


@pytest.mark.parametrize('device', DEVICES)
def test_nms_of_no_boxes(device):
    boxes, scores = torch.empty(0, 4, device=device), torch.empty(0, device=device)
    detections, indices = mmcv_functions.nms(boxes, scores, .5)
    assert detections.shape == (0, 5) and detections.device.type == device
    assert indices.shape == (0,) and indices.dtype == torch.int64
    # No score passes the threshold, so that none is left for the operator.
    _, indices = mmcv_functions.nms(torch.tensor(ABC, device=device),
                                    torch.tensor([.1, .2, .3], device=device), .5,
                                    score_threshold=.4)
    assert indices.shape == (0,)


@pytest.mark.parametrize('device', DEVICES)
def test_nms_score_threshold_and_max_num(device):
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.7, .9, .8], device=device)
    # At 0.85 nothing overlaps enough: B, C, A in the order of their scores.
    assert mmcv_functions.nms(boxes, scores, .85)[1].tolist() == [1, 2, 0]
    assert mmcv_functions.nms(boxes, scores, .85, max_num=2)[1].tolist() == [1, 2]
    # A is filtered out; the indices still refer to all three boxes.
    assert mmcv_functions.nms(boxes, scores, .85, score_threshold=.75)[1].tolist() == [1, 2]
    detections, indices = mmcv_functions.nms(boxes, scores, .85, score_threshold=.75, max_num=1)
    assert indices.tolist() == [1]
    assert detections.shape == (1, 5)


def slow_nms(boxes, scores, threshold, offset):
    """Greedy suppression in plain Python numbers."""
    def size(box):
        return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)

    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        box = boxes[index]
        for other in (boxes[k] for k in kept):
            width = max(0., min(box[2], other[2]) - max(box[0], other[0]) + offset)
            height = max(0., min(box[3], other[3]) - max(box[1], other[1]) + offset)
            overlap = width * height
            if overlap > threshold * (size(box) + size(other) - overlap):
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [.31, .53, .77])
def test_nms_against_a_slow_one(device, offset, threshold):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, generator=generator) * 40
    boxes = torch.cat((corners, corners + 5 + torch.rand(300, 2, generator=generator) * 30), 1)
    scores = torch.randperm(300, generator=generator) / 300
    expected = slow_nms(boxes.double().tolist(), scores.tolist(), threshold, offset)
    assert 3 < len(expected) < 290
    _, indices = mmcv_functions.nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    assert indices.tolist() == expected


@stand_in_only
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_other_dtypes(device, dtype):
    # Like ABC, but with areas of up to 2^20, beyond float16's 65504. The corners have at most 8
    # significant bits (816 = 51 * 16), so bfloat16 holds them exactly too.
    boxes = torch.tensor([[0, 0, 1024, 1024], [0, 0, 1024, 816], [512, 0, 1536, 1024]],
                         device=device, dtype=dtype)
    scores = torch.tensor([.75, .5, .25], device=device, dtype=dtype)
    # IoU of A and B: 816 / 1024 = 0.797; of A and C: 512 / 1536 = 0.333.
    detections, indices = mmcv_functions.nms(boxes, scores, .75)
    assert indices.tolist() == [0, 2]
    assert detections.dtype == dtype
    assert mmcv_functions.nms(boxes, scores, .80)[1].tolist() == [0, 1, 2]
    assert mmcv_functions.nms(boxes, scores, .30)[1].tolist() == [0]


@stand_in_only
@pytest.mark.parametrize('device', DEVICES)
def test_nms_with_scores_of_another_dtype(device):
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.75, .5, .25], device=device, dtype=torch.float16)
    assert mmcv_functions.nms(boxes, scores, .75)[1].tolist() == [0, 2]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('split_thr', [10000, 2])
def test_batched_nms(device, split_thr):
    # As in ABC, A drops B at a threshold of 0.75, but not if B is of another class.
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.9, .8, .7], device=device)
    classes = torch.tensor([0, 1, 0], device=device)
    config = dict(type='nms', iou_threshold=.75, split_thr=split_thr)
    detections, kept = mmcv_functions.batched_nms(boxes, scores, classes, config)
    assert kept.tolist() == [0, 1, 2]
    assert torch.equal(detections, torch.cat((boxes, scores[:, None]), 1))
    same = torch.zeros_like(classes)
    assert mmcv_functions.batched_nms(boxes, scores, same, config)[1].tolist() == [0, 2]
    config['max_num'] = 1
    assert mmcv_functions.batched_nms(boxes, scores, classes, config)[1].tolist() == [0]


@pytest.mark.parametrize('device', DEVICES)
def test_batched_nms_regardless_of_class(device):
    boxes = torch.tensor(ABC, device=device)
    scores = torch.tensor([.9, .8, .7], device=device)
    classes = torch.tensor([0, 1, 2], device=device)
    config = dict(type='nms', iou_threshold=.75)
    _, kept = mmcv_functions.batched_nms(boxes, scores, classes, config, class_agnostic=True)
    assert kept.tolist() == [0, 2]
    config['iou_threshold'] = .3
    _, kept = mmcv_functions.batched_nms(boxes, scores, classes,
                                         dict(config, class_agnostic=True))
    assert kept.tolist() == [0]
    assert mmcv_functions.batched_nms(boxes, scores, classes, config)[1].tolist() == [0, 1, 2]


# --- RoIAlign --------------------------------------------------------------------------------


def slow_roi_align(image, rois, size, scale, ratio, aligned):
    """RoIAlign one sample at a time; differentiable by ``image``.

    Args:
        image: Shape (N, C, H, W).
        rois: Shape (K, 5).

    Returns:
        Shape (K, C, *size).
    """
    height, width = image.shape[2:]

    def pixel(batch, y, x):
        # More than a pixel beyond the border there is nothing; closer to it, the border.
        if not (-1 <= y <= height and -1 <= x <= width):
            return torch.zeros_like(image[batch, :, 0, 0])
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = math.floor(y), math.floor(x)
        total = 0
        for row, share_y in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
            for column, share_x in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
                total = total + share_y * share_x * image[batch, :, row, column]
        return total

    def positions(start, extent, bins, index):
        samples = ratio if ratio > 0 else math.ceil(extent / bins)
        step = extent / bins / max(samples, 1)
        return [start + index * extent / bins + (k + .5) * step for k in range(samples)]

    pooled = []
    for batch, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (.5 if aligned else 0) for c in corners)
        extent_x, extent_y = x2 - x1, y2 - y1
        if not aligned:
            extent_x, extent_y = max(extent_x, 1.), max(extent_y, 1.)
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [pixel(int(batch), y, x)
                           for y in positions(y1, extent_y, size[0], i)
                           for x in positions(x1, extent_x, size[1], j)]
                pooled.append(sum(samples, torch.zeros_like(image[0, :, 0, 0]))
                              / max(len(samples), 1))
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def roi_align_case(dtype=torch.float64, device='cpu'):
    """Feature maps of shape (2, 3, 7, 9), and RoIs in a scale of 2 to them, shape (6, 5)."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    rois = torch.tensor([
        [0, 1.3, 2.1, 12.9, 11.2],
        [1, 0., 0., 18., 14.],  # the whole map
        [1, -5.2, -3.4, 6.1, 5.3],  # beyond the upper left corner
        [0, 11.7, 9.4, 25.3, 19.6],  # beyond the lower right corner
        [1, 6.2, 4.6, 6.9, 5.1],  # narrower than a pixel
        [0, 30., 30., 40., 40.],  # off the map
    ], dtype=torch.float64)
    return image.to(device, dtype), rois.to(device, dtype)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize(('aligned', 'expected'), [
    # The RoI covers x and y from 1 to 3, in one bin of 2 * 2 pixels, and so both ratios take
    # 2 * 2 samples at a distance of 1, whose mean is a plane's value in the middle.
    (False, 22.0),  # middle (2, 2): 2 + 10 * 2
    (True, 16.5),  # half a pixel less, middle (1.5, 1.5): 1.5 + 10 * 1.5
])
def test_roi_align_by_hand(device, ratio, aligned, expected):
    line = torch.arange(5., device=device)
    plane = (line[None, :] + 10 * line[:, None])[None, None]  # x + 10 y
    rois = torch.tensor([[0., 1., 1., 3., 3.]], device=device)
    pooled = mmcv_functions.roi_align(plane, rois, 1, 1., ratio, 'avg', aligned)
    assert pooled.tolist() == [[[[pytest.approx(expected, abs=1e-5)]]]]
    # The same box in an image of twice the size.
    pooled = mmcv_functions.roi_align(plane, rois * 2, 1, .5, ratio, 'avg', aligned)
    assert pooled.tolist() == [[[[pytest.approx(expected, abs=1e-5)]]]]


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_bins_by_hand(device):
    # One channel, one row per bin: rows of 0, 10, 20, 30. The RoI's y runs from 0 to 3 after the
    # shift, in 3 bins of one sample each, at 0.5, 1.5 and 2.5: the values 5, 15 and 25.
    image = (10 * torch.arange(4., device=device))[None, None, :, None].expand(1, 1, 4, 4)
    rois = torch.tensor([[0., .5, .5, 3.5, 3.5]], device=device)
    pooled = mmcv_functions.roi_align(image.contiguous(), rois, (3, 1), 1., 1, 'avg', True)
    assert torch.allclose(pooled.flatten().cpu(), torch.tensor([5., 15., 25.]), atol=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_against_a_slow_one(device, dtype, tolerance, ratio, aligned):
    image, rois = roi_align_case()
    size, scale = (3, 2), .5
    image.requires_grad_()
    expected = slow_roi_align(image, rois, size, scale, ratio, aligned)
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2),
                       dtype=torch.float64)
    slope, = torch.autograd.grad(expected, image, seed)

    copy = image.detach().to(device, dtype).requires_grad_()
    pool = mmcv_functions.RoIAlign(size, scale, ratio, aligned=aligned)
    pooled = pool(copy, rois.to(device, dtype))
    assert pooled.shape == (6, 3, 3, 2) and pooled.dtype == dtype
    assert torch.allclose(pooled.detach().cpu().double(), expected.detach(), atol=tolerance)
    assert pooled[5].abs().max() == 0  # off the map
    assert pooled[:5].abs().amax(dim=(1, 2, 3)).min() > 0.01
    pooled.backward(seed.to(device, dtype))
    assert copy.grad is not None and copy.grad.dtype == dtype
    assert torch.allclose(copy.grad.cpu().double(), slope, atol=tolerance)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_gradient(device, ratio, aligned):
    image, rois = roi_align_case(device=device)
    pool = mmcv_functions.RoIAlign((3, 2), .5, ratio, aligned=aligned)
    # On CUDA the contributions of overlapping RoIs are summed in no fixed order.
    assert torch.autograd.gradcheck(lambda x: pool(x, rois), image.requires_grad_(),
                                    nondet_tol=1e-12)


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_of_no_rois(device):
    if COMPILED and device == 'cuda':
        pytest.skip('the compiled kernel cannot be launched on nothing')
    image = torch.ones(2, 3, 4, 5, device=device, requires_grad=True)
    pooled = mmcv_functions.RoIAlign(7)(image, torch.empty(0, 5, device=device))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert image.grad is not None and image.grad.abs().max() == 0


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_backward_accumulates(device):
    # One bin of 2 * 2 pixels with a sample on each: a quarter of the gradient for each.
    extension = importlib.import_module('mmcv._ext')
    grad_input = torch.full((1, 1, 3, 3), 5., device=device)
    nothing = torch.empty(0, device=device)
    extension.roi_align_backward(
        torch.full((1, 1, 1, 1), 8., device=device),
        torch.tensor([[0., 0., 0., 2., 2.]], device=device), nothing, nothing, grad_input,
        aligned_height=1, aligned_width=1, spatial_scale=1., sampling_ratio=2, pool_mode=1,
        aligned=True)
    assert grad_input.tolist() == [[[[7., 7., 5.], [7., 7., 5.], [5., 5., 5.]]]]


@stand_in_only
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('rois_dtype', ['same', torch.float32, torch.float64])
def test_roi_align_in_half_precision(device, dtype, rois_dtype):
    image, rois = roi_align_case(dtype, device)
    if rois_dtype != 'same':
        _, rois = roi_align_case(rois_dtype, device)
    image.requires_grad_()
    pool = mmcv_functions.RoIAlign((3, 2), .5, 2)
    pooled = pool(image, rois)
    # The same in float32 on the same, rounded, values: only the result may be rounded again.
    exact = image.detach().float().requires_grad_()
    expected = pool(exact, rois.float())
    assert pooled.dtype == dtype
    assert torch.equal(pooled, expected.to(dtype))
    seed = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    pooled.backward(seed)
    expected.backward(seed.float())
    assert image.grad is not None and image.grad.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps
    assert exact.grad is not None and exact.grad.abs().max() > 0.1
    assert torch.allclose(image.grad.float(), exact.grad, rtol=tolerance, atol=1e-6)


@stand_in_only
@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_under_autocast(device):
    image, rois = roi_align_case(torch.float32, device)
    layer = torch.nn.Conv2d(3, 4, 1).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        features = layer(image)
        pooled = mmcv_functions.RoIAlign(2, .5)(features, rois)
    assert features.dtype == pooled.dtype == torch.bfloat16
    pooled.float().sum().backward()
    # The bias adds to every sample on the map; the five RoIs that are there have 2 * 2 bins.
    assert layer.bias.grad is not None
    assert torch.all((layer.bias.grad > 10) & (layer.bias.grad <= 20))


# --- sigmoid focal loss ----------------------------------------------------------------------


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


@pytest.mark.parametrize('device', FOCAL_DEVICES)
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


@pytest.mark.parametrize('device', FOCAL_DEVICES)
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
@pytest.mark.parametrize('device', FOCAL_DEVICES)
@pytest.mark.parametrize('gamma', [0., 1.5, 2.])
def test_focal_loss_gradient(device, gamma):
    logits, target = focal_case(device=device)
    weight = torch.tensor([.5, 2., 1., 3., .25], dtype=torch.float64, device=device)

    def loss(x):
        return mmcv_functions.sigmoid_focal_loss(x, target, gamma, .25, weight, 'none')

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize('device', FOCAL_DEVICES)
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
@pytest.mark.parametrize('device', FOCAL_DEVICES)
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
@pytest.mark.parametrize('device', FOCAL_DEVICES)
def test_focal_loss_weight_leaves_background_alone(device):
    logits = torch.zeros(2, 2, device=device)
    target = torch.tensor([1, 2], device=device)
    weight = torch.tensor([5., 10.], device=device)
    plain = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    weighted = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, weight, 'none')
    assert torch.allclose(weighted[0], 10 * plain[0])
    assert torch.equal(weighted[1], plain[1])


@pytest.mark.parametrize('device', FOCAL_DEVICES)
def test_focal_loss_rejects_an_index_beyond_background(device):
    logits = torch.zeros(2, 3, device=device)
    target = torch.tensor([0, 4], device=device)
    with pytest.raises((ValueError, RuntimeError), match='target') as info:
        mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    if not COMPILED:
        assert 'class index 4, but the input has only 3 classes' in str(info.value)


@stand_in_only
@pytest.mark.parametrize('device', FOCAL_DEVICES)
@pytest.mark.parametrize('shape', [(0, 3), (2, 0)])
def test_focal_loss_of_nothing(device, shape):
    logits = torch.zeros(shape, device=device, requires_grad=True)
    target = torch.zeros(shape[0], dtype=torch.long, device=device)
    loss = mmcv_functions.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    assert loss.shape == shape
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.shape == shape


@pytest.mark.parametrize('device', FOCAL_DEVICES)
def test_focal_loss_as_mmdet_calls_it(device):
    focal_loss = pytest.importorskip('mmdet.models.losses.focal_loss')
    logits, target = focal_case(torch.float32, device)
    rows = torch.linspace(0, 2, 40, device=device)
    loss = focal_loss.sigmoid_focal_loss(logits, target, rows, avg_factor=7)
    expected = reference_focal_loss(logits, target, rows, 2., .25).sum() / 7
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3 if COMPILED else 1e-5)
