"""A part of a model that computes in bfloat16 and returns float32."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['compute_in_bfloat16', 'replace_forward']

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def compute_in_bfloat16(part: nn.Module, device: str, *, rounds: bool = False,
                        predicts: bool = False) -> None:
    """Let a backbone, neck or head compute in bfloat16 by autocast, and return float32.

    Args:
        part: Its type, its hooks and its weights' names stay.
        device: Type of the device that it runs on.
        rounds: Whether its weights are rounded for good, instead of by autocast at every image.
        predicts: Whether its outputs are scores and boxes. The layers that make these stay in
            float32: eight bits would make one score of many, and ties change which boxes are
            kept. They are found at the first call, which computes twice.
    """
    forward = part.forward
    prepared = not predicts

    def computed(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return forward(*arguments, **named)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal prepared
        if not prepared:
            prepared = True
            for layer in _last_layers(part, lambda: computed(*arguments, **named)):
                replace_forward(layer, _in_full_precision(layer.forward, device))
            if rounds:
                _round_weights(part)
        return _in_float32(computed(*arguments, **named))

    if rounds and prepared:
        _round_weights(part)
    replace_forward(part, wrapped)


def _round_weights(part: nn.Module) -> None:
    for module in part.modules():
        # Layers with a forward of their own are the last ones, of this part or of one in it.
        if isinstance(module, _LAYERS) and 'forward' not in vars(module):
            module.bfloat16()


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give one module another forward; its type, its hooks and its weights' names stay."""
    module.forward = forward  # type: ignore[method-assign]


def _last_layers(part: nn.Module, compute: Callable[[], Any]) -> list[nn.Module]:
    """The layers of a part whose outputs are its own."""
    made: list[tuple[nn.Module, Tensor]] = []
    handles = [module.register_forward_hook(lambda layer, _, y: made.append((layer, y)))
               for module in part.modules() if isinstance(module, _LAYERS)]
    try:
        outputs = list(_tensors(compute()))
    finally:
        for handle in handles:
            handle.remove()
    found = {layer: None for layer, y in made if any(y is output for output in outputs)}
    return list(found)


def _in_full_precision(forward: Callable[..., Any], device: str) -> Callable[..., Any]:
    def wrapped(x: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            return forward(x.float())

    return wrapped


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, list | tuple | dict):
        for value in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _tensors(value)


def _in_float32(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype == torch.bfloat16 else outputs
    if type(outputs) in (list, tuple):
        return type(outputs)(_in_float32(value) for value in outputs)
    if type(outputs) is dict:
        return {key: _in_float32(value) for key, value in outputs.items()}
    return outputs
