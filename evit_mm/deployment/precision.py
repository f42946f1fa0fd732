"""Compute a part of a model in bfloat16, with float32 outputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.nested import tensors_in

__all__ = ['compute_in_bfloat16', 'replace_forward']

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def compute_in_bfloat16(part: nn.Module, device: str, *, round_weights: bool = False,
                        keep_last_layers: bool = False) -> None:
    """Let a backbone, neck or head compute in bfloat16 by autocast, and return float32.

    Args:
        part: The part; its type, its hooks and the names of its weights stay.
        device: Type of the device that it runs on.
        round_weights: Round its weights once, instead of under autocast for every image.
        keep_last_layers: Keep the layers in float32 whose outputs are those of the part, such as
            scores and boxes: scores of eight bits have many ties, which change the boxes that are
            kept. The layers are identified in the first call, which computes twice.
    """
    forward = part.forward
    identified = not keep_last_layers

    def under_autocast(*arguments: Any, **keywords: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return forward(*arguments, **keywords)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal identified
        if not identified:
            identified = True
            for layer in _last_layers(part, lambda: under_autocast(*arguments, **keywords)):
                replace_forward(layer, _in_float32(layer.forward, device))
            if round_weights:
                _round_weights(part)
        return _to_float32(under_autocast(*arguments, **keywords))

    if round_weights and identified:
        _round_weights(part)
    replace_forward(part, wrapped)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace the forward of one module; its type, hooks and names of weights stay."""
    module.forward = forward  # type: ignore[method-assign]


def _round_weights(part: nn.Module) -> None:
    for module in part.modules():
        # Layers with a forward of their own are last layers, of this part or of one inside it.
        if isinstance(module, _LAYERS) and 'forward' not in vars(module):
            module.bfloat16()


def _last_layers(part: nn.Module, compute: Callable[[], Any]) -> list[nn.Module]:
    """Return the layers whose outputs are the outputs of a part."""
    outputs_of: list[tuple[nn.Module, Tensor]] = []
    handles = [module.register_forward_hook(lambda layer, _, y: outputs_of.append((layer, y)))
               for module in part.modules() if isinstance(module, _LAYERS)]
    try:
        outputs = list(tensors_in(compute()))
    finally:
        for handle in handles:
            handle.remove()
    return list({layer: None for layer, y in outputs_of if any(y is x for x in outputs)})


def _in_float32(forward: Callable[..., Any], device: str) -> Callable[..., Any]:
    def wrapped(x: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            return forward(x.float())

    return wrapped


def _to_float32(outputs: Any) -> Any:
    """Convert the bfloat16 tensors of nested lists, tuples and dicts."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype == torch.bfloat16 else outputs
    if type(outputs) in (list, tuple):
        return type(outputs)(_to_float32(value) for value in outputs)
    if type(outputs) is dict:
        return {key: _to_float32(value) for key, value in outputs.items()}
    return outputs
