"""Find operators of mmcv that a model needs, and that are not available."""

from torch import nn

from ...compat.mmcv_ops import MissingOpError, missing_operators

__all__ = ['check_operators']


def check_operators(model: nn.Module) -> None:
    """Check that the operators which the modules of a model call are available.

    Args:
        model: A built model.

    Raises:
        MissingOpError: If one isn't; names it, the module, and what to do.
    """
    for name, module in model.named_modules():
        for operator in missing_operators(type(module)):
            raise MissingOpError(operator, f'{name or "the model"} ({type(module).__name__})')
