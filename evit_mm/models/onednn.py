"""Operators of oneDNN that torch itself only calls from compiled code.

They take weights that were put into the library's own order once instead of at every call, and
compute a ReLU or a residual while the results are still in the cache. torch has them on CPUs
alone, and they know nothing of gradients.
"""

import functools

import torch
from torch import Tensor, nn

from .derived import Derived
from .eager import computes_plainly

__all__ = ['PackedMatrices', 'PackedWeight', 'usable']

_POINTWISE = [0, 0], [1, 1], [1, 1]
"""Padding, stride and dilation."""
_ROWS = 64, 96, 288
"""Of factors of `PackedMatrices`: with 64 products near their full rate, with more than 288 factors
leave the caches."""


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether the operators can take the place of torch's own at this call."""
    return bool(computes_plainly(x, weight) and weight.dtype in _dtypes()
                and torch.backends.mkldnn.enabled)  # type: ignore[attr-defined]


@functools.cache
def _dtypes() -> tuple[torch.dtype, ...]:
    names = ('_linear_pointwise', '_reorder_linear_weight', '_convolution_pointwise',
             '_reorder_convolution_weight')
    if not torch.backends.mkldnn.is_available() \
            or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return ()
    supports_bf16 = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)
    return (torch.float32, torch.bfloat16) if supports_bf16() else (torch.float32,)


class PackedWeight:
    """A convolution's weight in oneDNN's order."""

    def __init__(self) -> None:
        self._packed: Derived[Tensor] = Derived()

    def matmul(self, weight: Tensor, bias: Tensor | None, x: Tensor, *, relu: bool = False,
               add: Tensor | None = None) -> Tensor:
        """Compute ``relu(x @ weight.T + bias)``, or ``x @ weight.T + bias + add``.

        Args:
            weight: (C_out, C_in), or (C_out, C_in, 1, 1).
            bias: (C_out,).
            x: (N, C_in), rounded to the weight's precision.
            relu: Whether a ReLU follows.
            add: (N, C_out), instead of a ReLU.

        Returns:
            Tensor: (N, C_out), new, in the weight's precision.
        """
        packed = self._packed.get([weight], lambda: _packed(weight))
        x = x.to(weight.dtype)
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(
                x, add.to(weight.dtype), packed, bias, 'add')
        return torch.ops.mkldnn._linear_pointwise.default(
            x, packed, bias, 'relu' if relu else 'none', [], '')

    def convolve(self, conv: nn.Conv2d, x: Tensor, *, relu: bool = False) -> Tensor:
        """Compute ``conv(x)``, or ``relu(conv(x))``.

        The order of the weight is the best one for the first image's size; it serves any other.
        """
        settings = conv.padding, conv.stride, conv.dilation, conv.groups
        x, weight = x.to(conv.weight.dtype), conv.weight
        packed = self._packed.get([weight], lambda: torch.ops.mkldnn._reorder_convolution_weight(
            weight.detach(), *settings, x.shape))
        return torch.ops.mkldnn._convolution_pointwise.default(
            x, packed, conv.bias, *settings, 'relu' if relu else 'none', [], '')


class PackedMatrices:
    """Matrices in oneDNN's order, to multiply as many others with at once.

    They are the groups of a pointwise convolution. torch's own batched product is another
    library's, which reaches half of this one's rate on a CPU that is not Intel's.

    Args:
        matrices: (G, N, K) in float32, on a CPU.
    """

    def __init__(self, matrices: Tensor) -> None:
        groups, self.columns, _ = matrices.shape
        self._packed = _packed_groups(matrices.detach(), _ROWS[-1])

    @staticmethod
    @functools.cache
    def usual_rows(groups: int, columns: int, inner: int) -> tuple[int, ...]:
        """How many rows a factor of matrices (G, N, K) should have: one of these numbers.

        oneDNN chooses its order of the matrices by the number of rows, and rearranges them at
        every call with one for which it would have chosen another.
        """
        matrices = torch.empty(groups, columns, inner, dtype=torch.float32, device='cpu')
        describe = getattr(torch.ops.mkldnn, '_get_mkldnn_serialized_md', None)
        if describe is None:
            return _ROWS[-1:]
        orders = [describe(_packed_groups(matrices, rows)) for rows in _ROWS]
        return tuple(rows for rows, order in zip(_ROWS, orders, strict=True)
                     if torch.equal(order, orders[-1]))

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply (M, G, K), each (M, K) with its matrix's transpose, to (M, G, N)."""
        rows, groups, _ = x.shape
        # An image of one row, with its channels last.
        image = x.view(1, 1, rows, -1).permute(0, 3, 1, 2)
        y = torch.ops.mkldnn._convolution_pointwise.default(
            image, self._packed, None, *_POINTWISE, groups, 'none', [], '')
        return y.permute(0, 2, 3, 1).view(rows, groups, self.columns)


def _packed_groups(matrices: Tensor, rows: int) -> Tensor:
    groups, columns, inner = matrices.shape
    weight = matrices.reshape(groups * columns, inner, 1, 1)
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight, *_POINTWISE, groups, [1, groups * inner, 1, rows])


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().flatten(1))
