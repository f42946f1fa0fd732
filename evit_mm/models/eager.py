"""When a layer may compute in a way of its own, which only eager inference on a CPU allows."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ['computes_plainly']


def computes_plainly(x: Tensor, weight: Tensor) -> bool:
    """Whether nothing but the result counts at this call, on a CPU and in the weight's precision.

    Nothing may be recording what is computed: no gradient, forward ones included, no compiler, no
    tracer, no transformation of `torch.func` and no mode that looks at every operator. Under
    autocast, weights must be of its precision already.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or _is_transformed():
        return False
    dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
    return bool(
        type(x) is Tensor and x.device.type == 'cpu' and weight.device.type == 'cpu'
        and dtype == weight.dtype
        and not weight.is_inference()  # nobody can see whether such a tensor was changed
        and not torch.jit.is_tracing() and not is_in_torch_dispatch_mode())


def _is_transformed() -> bool:
    """Whether `torch.func` or forward-mode AD is at work, whose tensors look like any other."""
    return (torch._C._functorch.maybe_current_level() is not None
            or torch.autograd.forward_ad._current_level >= 0)
