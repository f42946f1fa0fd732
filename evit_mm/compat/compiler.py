"""Whether torch.compile finds what it needs, before it is needed."""

from ..errors import UserError

__all__ = ['check_compiler']


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
