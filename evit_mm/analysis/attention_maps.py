"""Capture of the attention maps that a running model computes, block by block.

A map is the output of a softmax inside an attention module. It is recorded and passed on
unchanged, so that nothing is computed twice or differently.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from ..models import EfficientViT

__all__ = ['AttentionMaps', 'capture_maps', 'drop_prefix_tokens']


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps of one block for one batch.

    Attributes:
        block: Path of the block inside the model.
        maps: (B * windows, heads, N, N); rows are queries and sum to 1. There is one window per
            image if the attention is not windowed.
        inside: (B * windows, N) bool; False for queries that are padding.
        prefix_tokens: Number of tokens before those of the image, such as the class token.
    """

    block: str
    maps: Tensor
    inside: Tensor
    prefix_tokens: int = 0


@dataclass(frozen=True)
class _Windows:
    """Source of the size of the feature map that is cut into windows, padded right and bottom.

    Attributes:
        module: Class of the module whose input is that feature map: the attention, or a module
            around it.
        axes: Height and width among the axes of that input.
    """

    module: str
    axes: tuple[int, int]


_OURS = 'evit_mm.models.attention.CascadedGroupAttention'

# By name, because timm need not be installed. None: attention over the whole image.
_KINDS: dict[str, _Windows | None] = {
    _OURS: _Windows(_OURS, (2, 3)),
    'timm.models.efficientvit_msra.CascadedGroupAttention':
        _Windows('timm.models.efficientvit_msra.LocalWindowAttention', (2, 3)),
    'timm.models.swin_transformer.WindowAttention':
        _Windows('timm.models.swin_transformer.SwinTransformerBlock', (1, 2)),
    'timm.layers.attention.Attention': None,
    'timm.models.vision_transformer.Attention': None,  # earlier versions
}

_SOFTMAX_FUNCTIONS = (torch.softmax, Tensor.softmax, F.softmax)


class _SoftmaxRecorder(TorchFunctionMode):
    """Records the output of every softmax while ``outputs`` is a list.

    The axis that sums to 1 comes last: some attentions compute keys by queries.
    """

    outputs: list[Tensor] | None = None

    def __torch_function__(self, func: Callable, types: Any, args: Sequence = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.outputs is not None and func in _SOFTMAX_FUNCTIONS:
            dim = (kwargs or {}).get('dim', args[1] if len(args) > 1 else -1)
            self.outputs.append(result.movedim(dim, -1))
        return result


@contextmanager
def capture_maps(model: nn.Module, receive: Callable[[AttentionMaps], None]) -> Iterator[None]:
    """Call ``receive`` with the maps of each attention block whenever the model runs.

    timm's fused attention, which has no maps, is switched to its plain form within the context.

    Args:
        model: In eval mode, because dropout would come between the softmax and its use.
            EfficientViT, or timm's ViT, DeiT, Swin or EfficientViT, alone or inside another model.
        receive: Called once per block and forward pass, in the order of execution.

    Raises:
        UserError: If the model has no attention block of these kinds, or is in its deploy form.
    """
    for name, module in model.named_modules():
        if isinstance(module, EfficientViT) and module.deploy:
            raise UserError(f'the EfficientViT{f" at {name}" if name else ""} is in its deploy '
                            'form, whose attention maps can\'t be captured: analyze the model '
                            'before switch_to_deploy(), or build it without deploy=True')
    attentions: list[tuple[str, Any, str]] = [
        (name, module, kind) for name, module in model.named_modules()
        if (kind := _kind(module)) is not None]
    if not attentions:
        raise UserError(f'{type(model).__name__} has no attention blocks whose maps can be '
                        'captured: use EfficientViT, or timm\'s ViT, DeiT, Swin or EfficientViT')
    recorder = _SoftmaxRecorder()
    with ExitStack() as stack:
        stack.enter_context(recorder)
        for name, module, kind in attentions:
            capture = _Capture(model, name, module, _KINDS[kind], recorder, receive)
            for handle in capture.register_hooks():
                stack.callback(handle.remove)
            if getattr(module, 'fused_attn', False):
                stack.callback(setattr, module, 'fused_attn', True)
                module.fused_attn = False
        yield


def drop_prefix_tokens(captured: AttentionMaps) -> AttentionMaps:
    """Return the maps without class tokens, as queries and as keys; rows no longer sum to 1."""
    first = captured.prefix_tokens
    return AttentionMaps(captured.block, captured.maps[..., first:, first:],
                         captured.inside[:, first:])


class _Capture:
    """Hooks around one attention module."""

    def __init__(self, model: nn.Module, name: str, module: Any, windows: _Windows | None,
                 recorder: _SoftmaxRecorder, receive: Callable[[AttentionMaps], None]) -> None:
        self.block = name.removesuffix('.attn') or type(module).__name__
        self.module = module
        self.windows = windows
        self.recorder = recorder
        self.receive = receive
        # The module and its ancestors, innermost first.
        lineage = [model.get_submodule('.'.join(name.split('.')[:length]))
                   for length in range(name.count('.') + 1, -1, -1)] if name else [module]
        self.map_owner = next((ancestor for ancestor in lineage
                               if windows and windows.module in _class_names(ancestor)), module)
        self.prefix_tokens = next((count for ancestor in lineage if isinstance(
            count := getattr(ancestor, 'num_prefix_tokens', None), int)), 0)
        self.map_size = (0, 0)

    def register_hooks(self) -> Iterator[Any]:
        """Register the hooks, and yield their handles."""
        yield self.map_owner.register_forward_pre_hook(self._store_map_size)
        yield self.module.register_forward_pre_hook(self._start)
        yield self.module.register_forward_hook(self._finish)

    def _store_map_size(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.windows:
            height, width = self.windows.axes
            self.map_size = (inputs[0].shape[height], inputs[0].shape[width])

    def _start(self, *_: Any) -> None:
        self.recorder.outputs = []

    def _finish(self, *_: Any) -> None:
        outputs, self.recorder.outputs = self.recorder.outputs or [], None
        shapes = [tuple(output.shape) for output in outputs]
        heads = self.module.num_heads
        if len(shapes) == heads and all(len(shape) == 3 for shape in shapes):
            maps = torch.stack(outputs, dim=1)  # cascaded: one head after the other
        elif len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == heads:
            maps = outputs[0]
        else:
            raise UserError(f'block {self.block} has {heads} heads, but its softmax outputs have '
                            f'the shapes {shapes}, which are not attention maps')
        self.receive(AttentionMaps(self.block, maps, self._inside(maps), self.prefix_tokens))

    def _inside(self, maps: Tensor) -> Tensor:
        total, _, tokens, _ = maps.shape
        if not self.windows:
            return maps.new_ones(total, tokens, dtype=torch.bool)
        size = getattr(self.module, 'window_size', None) or self.module.resolution
        rows, columns = size if isinstance(size, tuple) else (size, size)
        height, width = self.map_size
        image = F.pad(maps.new_ones(1, 1, height, width),
                      (0, -width % columns, 0, -height % rows))
        inside = F.unfold(image, (rows, columns), stride=(rows, columns))[0].T.bool()
        return inside.repeat(total // len(inside), 1)


def _kind(module: nn.Module) -> str | None:
    return next((name for name in _class_names(module) if name in _KINDS), None)


def _class_names(module: nn.Module) -> list[str]:
    return [f'{cls.__module__}.{cls.__qualname__}' for cls in type(module).__mro__]
