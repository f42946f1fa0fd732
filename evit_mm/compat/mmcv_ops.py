"""A stand-in for ``mmcv._ext`` where mmcv was installed without compiled operators.

``mmcv.ops`` loads its operators from the extension module ``mmcv._ext``, which
``mmcv-lite`` does not ship. Without it ``import mmcv.ops`` fails, and with it
``import mmdet``, even for a model that never calls such an operator. :func:`install`
registers a module of that name which

* computes ``nms``, average-pooling ``roi_align`` and ``sigmoid_focal_loss`` on
  torchvision's operators and plain torch, on every device these run on, and
* answers a call of any other operator with a :class:`MissingOpError` that names it.

A compiled ``mmcv._ext`` always takes precedence: the stand-in is never put over one.

With ``torch.use_deterministic_algorithms(True)`` torchvision refuses the CUDA
backward of RoIAlign, because it accumulates with atomic additions. mmcv's own kernel
does the same without saying so; the stand-in lets torch's error through.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import torch
import torchvision  # registers the operators in torch.ops.torchvision
from torch import Tensor
from torch.nn import functional

__all__ = ['MissingOpError', 'install']

_EXTENSION = 'mmcv._ext'
# A name in the module's own dictionary rather than an identity check, so that the
# stand-in is still recognised after this file has been reloaded.
_MARK = '__evit_mm_stand_in__'


class MissingOpError(NotImplementedError):
    """An operator of mmcv's compiled extension was called but is not available."""


def install() -> bool:
    """Make ``import mmcv.ops`` work where mmcv has no compiled extension.

    Calling it again changes nothing. Neither mmcv nor ``mmcv.ops`` gets imported, so
    the call is cheap and can come before either of them.

    Returns:
        True if the stand-in serves as ``mmcv._ext`` after the call. False if a compiled
        (or any other) ``mmcv._ext`` does, or if mmcv is not installed.
    """
    module = sys.modules.get(_EXTENSION)
    if module is None:
        if not _mmcv_lacks_extension():
            return False
        module = _build_module()
        sys.modules[_EXTENSION] = module
    elif _MARK not in vars(module):
        return False

    # The import system makes a submodule an attribute of its package only when it loads the
    # submodule, and it never loads one that is in sys.modules already.
    package = sys.modules.get('mmcv')
    if package is not None:
        vars(package)['_ext'] = module
    return True


def _mmcv_lacks_extension() -> bool:
    """Tell whether mmcv is installed, but without the extension module."""
    package = importlib.util.find_spec('mmcv')
    if package is None or package.submodule_search_locations is None:
        return False
    # importlib.util.find_spec would import mmcv to get at its path. A finder without
    # find_spec is one that Python below 3.12 still tolerates.
    path = list(package.submodule_search_locations)
    finders = (finder for finder in sys.meta_path if hasattr(finder, 'find_spec'))
    return all(finder.find_spec(_EXTENSION, path) is None for finder in finders)


def _build_module() -> ModuleType:
    module = ModuleType(_EXTENSION, "Stand-in for mmcv's compiled operators.")
    # find_spec raises on a module without a spec. The spec names no loader because
    # mmcv.utils.ext_loader.check_ops_exist and mmengine's mmcv_full_available take one
    # for proof that all operators are there.
    module.__spec__ = importlib.machinery.ModuleSpec(_EXTENSION, loader=None, origin=__name__)
    operators: tuple[Callable[..., object], ...] = (
        get_compiler_version,
        get_compiling_cuda_version,
        nms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    )
    vars(module).update({operator.__name__: operator for operator in operators})
    vars(module).update({_MARK: True, '__getattr__': _stub})
    return module


def _stub(name: str) -> Callable[..., NoReturn]:
    """Stand for an operator that is missing; ``mmcv.ops`` asks for all of them at import."""
    if name.startswith('__') and name.endswith('__'):
        # Answering for these would feign protocols, e.g. __path__ those of a package.
        raise AttributeError(f'module {_EXTENSION!r} has no attribute {name!r}')

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise _missing(repr(name))

    missing.__name__ = missing.__qualname__ = name
    return missing


def _missing(what: str) -> MissingOpError:
    return MissingOpError(
        f'mmcv op {what} is not available: mmcv is installed without its compiled operators '
        "(mmcv-lite), of which evit_mm replaces only nms, RoIAlign with pool_mode='avg' and "
        'sigmoid focal loss. Replace mmcv-lite by a compiled mmcv 2.1.x that matches torch '
        f'{torch.__version__}: run `pip uninstall mmcv-lite`, then `pip install mmcv==2.1.0` '
        'with a wheel for that torch, or, where there is none, from source with a compiler and '
        'MMCV_WITH_OPS=1.'
    )


def get_compiler_version() -> str:
    """Describe, for ``collect_env``, what takes the place of compiled operators."""
    return f'not compiled (evit_mm stand-in on torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Describe, for ``collect_env``, which CUDA the operators in use were built for."""
    toolkit = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
    return f'not compiled (torch was built for {toolkit})'


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision lacks kernels on some devices, and digits for coordinates on all."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)``, shape (N, 4).
        scores: Shape (N,); may differ from ``boxes`` in dtype.
        iou_threshold: A box goes if its IoU with a better one exceeds this value.
        offset: Added to every width and height; 1 for inclusive pixel corners, else 0.

    Returns:
        Indices of the boxes kept, best score first, int64, shape (K,).
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    dtype = _working_dtype(torch.promote_types(boxes.dtype, scores.dtype))
    corners = boxes.to(dtype)
    if offset:
        # Widths, heights and overlaps all grow by the offset when the far corners move.
        corners = torch.cat((corners[:, :2], corners[:, 2:] + offset), dim=1)
    if dtype == torch.float32:
        # torchvision compares a float32 IoU with a double threshold on CPU. For 0.6,
        # whose float32 is larger, that drops boxes at exactly the threshold; mmcv
        # rounds the threshold too, and keeps them.
        iou_threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    keep: Tensor = torch.ops.torchvision.nms(corners, scores.to(dtype), iou_threshold)
    return keep


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average bilinear samples of a feature map in each bin of each RoI.

    Args:
        input: Feature maps, shape (N, C, H, W).
        rois: ``(batch index, x1, y1, x2, y2)``, shape (K, 5); may differ in dtype.
        output: Written in place, shape (K, C, aligned_height, aligned_width).
        argmax_y: Used by max pooling only.
        argmax_x: Used by max pooling only.
        aligned_height: Bins per RoI along y.
        aligned_width: Bins per RoI along x.
        spatial_scale: Feature map pixels per unit of the RoIs' coordinates.
        sampling_ratio: Samples per bin and axis; 0 for one per feature map pixel.
        pool_mode: 1 for average pooling; 0, max pooling, is not available.
        aligned: Whether pixel centres lie half a pixel off their corner coordinates.

    Raises:
        MissingOpError: If ``pool_mode`` is 0.
    """
    _require_average(pool_mode)
    if output.numel() == 0:
        return
    dtype = _working_dtype(input.dtype)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``.

    Args:
        grad_output: Shape (K, C, aligned_height, aligned_width).
        rois: As in the forward pass, shape (K, 5).
        argmax_y: Used by max pooling only.
        argmax_x: Used by max pooling only.
        grad_input: Accumulated into in place, shape (N, C, H, W).
        aligned_height: As in the forward pass.
        aligned_width: As in the forward pass.
        spatial_scale: As in the forward pass.
        sampling_ratio: As in the forward pass.
        pool_mode: As in the forward pass.
        aligned: As in the forward pass.

    Raises:
        MissingOpError: If ``pool_mode`` is 0.
    """
    _require_average(pool_mode)
    if grad_output.numel() == 0:
        return
    dtype = _working_dtype(grad_input.dtype)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _require_average(pool_mode: int) -> None:
    if pool_mode == 0:
        raise _missing("RoIAlign with pool_mode='max'")


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every logit against a class index per row.

    With ``p = sigmoid(x)`` the loss is ``-alpha (1 - p)^gamma log(p)`` at the row's own
    class and ``-(1 - alpha) p^gamma log(1 - p)`` at all others.

    Args:
        input: Logits, shape (N, C).
        target: Class indices, int64, shape (N,). C means background; so do negatives.
        weight: A factor per class for the rows of that class, shape (C,), or empty for
            none. Background rows keep the factor 1, since no class is theirs.
        output: Written in place, shape (N, C).
        gamma: Exponent that plays down the entries already right.
        alpha: Share of the positive entries, in [0, 1].

    Raises:
        ValueError: If an index in ``target`` exceeds C.
    """
    if input.numel() == 0:
        return
    num_classes = input.size(1)
    largest = int(target.max())
    if largest > num_classes:
        raise ValueError(
            f'target holds the class index {largest}, but the input has only {num_classes} '
            f'classes. Use indices from 0 to {num_classes - 1}, and {num_classes} for background.'
        )
    loss = _over_classes(_margin_loss, input, target, weight, gamma, alpha, at_others=1 - alpha)
    output.copy_(loss)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of every entry of :func:`sigmoid_focal_loss_forward` by its own logit.

    Args:
        input: As in the forward pass, shape (N, C).
        target: As in the forward pass, shape (N,).
        weight: As in the forward pass, shape (C,) or empty.
        grad_input: Written in place, shape (N, C).
        gamma: As in the forward pass.
        alpha: As in the forward pass.
    """
    if input.numel() == 0:
        return
    # The margin of a negative entry is -x, which turns the sign of its slope by x.
    slope = _over_classes(_margin_slope, input, target, weight, gamma, alpha, at_others=alpha - 1)
    grad_input.copy_(slope)


def _over_classes(
    curve: Callable[[Tensor, float], Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: float,
    alpha: float,
    at_others: float,
) -> Tensor:
    """Evaluate a function of the margin for every entry, as positive or as negative.

    The margin is the logit, signed so that more is better: x at the row's own class and
    -x elsewhere. Computing all entries as negatives first and then correcting one per row
    spares the (N, C) one-hot mask, and indexing by gather and scatter the synchronisation
    with the device that looking for foreground rows would cost.

    Args:
        curve: Takes margins of any shape and gamma.
        input: Logits, shape (N, C), not empty.
        target: Class indices, shape (N,); others than 0 .. C-1 are background.
        weight: A factor per class, shape (C,), or empty.
        gamma: The exponent.
        alpha: Factor for the entry at the row's own class.
        at_others: Factor for all other entries.

    Returns:
        float32, or float64 if ``input`` is; shape (N, C).
    """
    logits = input.to(_working_dtype(input.dtype))
    foreground = (target >= 0) & (target < logits.size(1))
    column = target.clamp(0, logits.size(1) - 1)
    values = curve(-logits, gamma).mul_(at_others)
    index = column[:, None]
    own = curve(logits.gather(1, index), gamma).mul_(alpha)
    values.scatter_(1, index, torch.where(foreground[:, None], own, values.gather(1, index)))
    if weight.numel() > 0:
        factor = torch.where(foreground, weight.to(values.dtype)[column], 1.0)
        values.mul_(factor[:, None])
    return values


def _margin_loss(margin: Tensor, gamma: float) -> Tensor:
    """``-q^gamma log(1 - q)`` with ``q = sigmoid(-margin)``, of the shape of ``margin``.

    logsigmoid yields the logarithm where 1 - q is too small for its dtype.
    """
    error = margin.neg().sigmoid_()
    return error.pow_(gamma).mul_(functional.logsigmoid(margin)).neg_()


def _margin_slope(margin: Tensor, gamma: float) -> Tensor:
    """Derivative of :func:`_margin_loss` by the margin, of the shape of ``margin``.

    With ``dq/dm = -q (1 - q)`` and ``d log(1 - q)/dm = q`` the product rule gives
    ``q^gamma (gamma (1 - q) log(1 - q) - q)``.
    """
    error = margin.neg().sigmoid_()
    slope = functional.logsigmoid(margin).mul_(margin.sigmoid()).mul_(gamma).sub_(error)
    return slope.mul_(error.pow_(gamma))
