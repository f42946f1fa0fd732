"""Backward passes of operators that are written in differentiable torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ['gradients']


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor],
              grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a function by each of its inputs.

    The function runs once more: mmcv keeps the inputs of an operator for its backward pass, but no
    graph.

    Args:
        function: Called with ``inputs``.
        inputs: Tensors in their working dtype.
        grad_output: Gradient by the output, of its shape; any dtype.
    """
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        output = function(*inputs)
    return torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
