"""What is computed from weights once, and again when they change."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

__all__ = ['Derived']

T = TypeVar('T')


class Derived(Generic[T]):
    """A value computed from weights, kept until one of them is replaced, moved or changed in place.

    A change that hides from autograd, through ``weight.data``, is not seen. Weights that were made
    under ``torch.inference_mode`` tell of no change at all, so nothing is kept for them.
    """

    def __init__(self) -> None:
        self._entry: tuple[list[tuple], list[Tensor], T] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copies and pickles start empty: they get weights of their own."""
        return type(self), ()

    def get(self, weights: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """The value that ``compute`` makes of the weights."""
        if any(weight.is_inference() for weight in weights):
            return compute()
        state = [(weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, weight._version)
                 for weight in weights]
        entry = self._entry
        if entry is None or entry[0] != state:
            # References to the weights keep their addresses from being given to others.
            entry = self._entry = state, [weight.detach() for weight in weights], compute()
        return entry[2]
