"""torch.compile: whether it finds what it needs, and the settings that make it fast."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..errors import UserError

__all__ = ['check_compiler', 'compiled']


def compiled(forward: Callable[..., Any], device: str, *, inference: bool,
             cuda_graphs: bool = False) -> Callable[..., Any]:
    """Compile a module or its forward, a graph for each size of its inputs.

    On a CPU, inference takes the weights for constants, so that they are put into oneDNN's order
    once and what follows a convolution becomes part of it: weights must not change afterwards.

    Args:
        forward: What to compile.
        device: Type of the device that it runs on, such as ``'cpu'``.
        inference: Whether it will never be differentiated.
        cuda_graphs: Whether a GPU replays the kernels as CUDA graphs.
    """
    # One graph for all sizes took minutes to make, as windows cut them everywhere.
    if device != 'cpu':
        return torch.compile(forward, dynamic=False, options={'triton.cudagraphs': cuda_graphs})
    if not inference:
        return torch.compile(forward, dynamic=False)
    # Python takes a tenth of a small image's time for the hundreds of calls of a graph. C++ does
    # not; for a training step, its compiler takes minutes.
    graph = torch.compile(forward, dynamic=False, options={'cpp_wrapper': True})
    from torch._inductor import config

    @functools.wraps(forward)
    def frozen(*arguments: Any, **named: Any) -> Any:
        # torch.compile looks for it before it applies options of its own (seen in torch 2.11).
        with config.patch(freezing=True):
            return graph(*arguments, **named)

    return frozen


def check_compiler(device: str, option: str) -> None:
    """Check that torch.compile can work for a device.

    Args:
        device: Type of the device, such as ``'cpu'``.
        option: What asks for it on the command line.

    Raises:
        UserError: If a compiler is missing.
    """
    if device == 'cuda':
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(f'{option} needs Triton on this GPU, and torch finds none: install '
                            f'the triton that belongs to your torch, or leave {option} out')
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (RuntimeError, OSError) as error:
        raise UserError(f'{option} needs a C++ compiler on the CPU, and torch finds none: install '
                        f'g++, or name one in the variable CXX, or leave {option} out') from error
