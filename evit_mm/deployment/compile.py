"""torch.compile with the settings that make it fast, and a check that it can work."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..errors import UserError

__all__ = ['check_compiler', 'compiled']


def compiled(forward: Callable[..., Any], device: str, *, inference: bool) -> Callable[..., Any]:
    """Compile a module or its forward, with one graph for each size of its inputs.

    For inference on a CPU, weights are constants of the graph, so that they are reordered for
    oneDNN once and convolutions absorb what follows them: weights must not change afterwards.

    Args:
        forward: A module, or the forward of one.
        device: Type of the device that it runs on, such as ``'cpu'``.
        inference: Compile for inference, without a backward pass.
    """
    # One graph for all sizes takes minutes to compile.
    if device != 'cpu' or not inference:
        return torch.compile(forward, dynamic=False)
    # Calling the hundreds of kernels of a graph from Python takes a tenth of the time of a small
    # image; from C++ it does not. For a training step, compiling that C++ takes minutes.
    graph = torch.compile(forward, dynamic=False, options={'cpp_wrapper': True})
    from torch._inductor import config

    @functools.wraps(forward)
    def frozen(*arguments: Any, **named: Any) -> Any:
        # torch.compile reads this before it applies its options (torch 2.11).
        with config.patch(freezing=True):
            return graph(*arguments, **named)

    return frozen


def check_compiler(device: str, option: str) -> None:
    """Check that torch.compile can work for a device.

    Args:
        device: Type of the device, such as ``'cpu'``.
        option: The option of the command line that needs it, for the message.

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
