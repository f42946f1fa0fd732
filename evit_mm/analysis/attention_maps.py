"""The attention maps that a model computes, handed out block by block while it runs.

A map is what comes out of a softmax inside an attention block: it is noted there and goes on as it
is, so that nothing of the model is computed twice or differently.
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
    """The maps that one block computed for one batch.

    Attributes:
        block: Path of the block inside the model.
        maps: (B * windows, heads, N, N), rows are queries and add up to 1; one window where
            attention sees the whole image.
        inside: (B * windows, N) bool: queries that are places of the image, not of padding.
        prefix_tokens: How many tokens come before those of the image, such as the class token.
    """

    block: str
    maps: Tensor
    inside: Tensor
    prefix_tokens: int = 0


@dataclass(frozen=True)
class _Windows:
    """Where the size of the map is seen that is cut into windows, padded right and bottom.

    Attributes:
        cutter: Class of the module that cuts: the attention itself, or what contains it.
        axes: Height and width among the axes of that module's input.
    """

    cutter: str
    axes: tuple[int, int]


_OURS = 'evit_mm.models.attention.CascadedGroupAttention'

# By name, because timm need not be installed; None is attention over the whole image.
_KINDS: dict[str, _Windows | None] = {
    _OURS: _Windows(_OURS, (2, 3)),
    'timm.models.efficientvit_msra.CascadedGroupAttention':
        _Windows('timm.models.efficientvit_msra.LocalWindowAttention', (2, 3)),
    'timm.models.swin_transformer.WindowAttention':
        _Windows('timm.models.swin_transformer.SwinTransformerBlock', (1, 2)),
    'timm.layers.attention.Attention': None,
    'timm.models.vision_transformer.Attention': None,  # of earlier versions
}

_SOFTMAXES = (torch.softmax, Tensor.softmax, F.softmax)


class _Softmaxes(TorchFunctionMode):
    """Notes what comes out of every softmax while ``noted`` is a list."""

    noted: list[Tensor] | None = None

    def __torch_function__(self, func: Callable, types: Any, args: Sequence = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.noted is not None and func in _SOFTMAXES:
            self.noted.append(result)
        return result


@contextmanager
def capture_maps(model: nn.Module, receive: Callable[[AttentionMaps], None]) -> Iterator[None]:
    """Give ``receive`` the maps of each attention block whenever the model runs.

    timm's fused attention, which has no maps, is switched to its plain form meanwhile.

    Args:
        model: In inference mode: dropout would come between softmax and use. EfficientViT, or
            timm's ViT, DeiT, Swin or EfficientViT, alone or inside another model.
        receive: Called once per block and run, in the order in which they run.

    Raises:
        UserError: If the model has no attention block of these kinds, or is a deploy form.
    """
    for name, module in model.named_modules():
        if isinstance(module, EfficientViT) and getattr(module, 'deploy', False):
            raise UserError(f'the EfficientViT{f" at {name}" if name else ""} is a deploy form, '
                            'whose attention maps are not read: build it without deploy, and '
                            'before switch_to_deploy()')
    attentions: list[tuple[str, Any, str]] = [
        (name, module, kind) for name, module in model.named_modules()
        if (kind := _kind(module)) is not None]
    if not attentions:
        raise UserError(f'{type(model).__name__} has no attention blocks whose maps can be read: '
                        'EfficientViT has, and timm\'s ViT, DeiT, Swin and EfficientViT')
    softmaxes = _Softmaxes()
    with ExitStack() as stack:
        stack.enter_context(softmaxes)
        for name, module, kind in attentions:
            for hook in _Capture(model, name, module, _KINDS[kind], softmaxes, receive).hooks():
                stack.callback(hook.remove)
            if getattr(module, 'fused_attn', False):
                stack.callback(setattr, module, 'fused_attn', True)
                module.fused_attn = False
        yield


def drop_prefix_tokens(captured: AttentionMaps) -> AttentionMaps:
    """The same without class tokens, as queries and as keys; rows no longer add up to 1."""
    first = captured.prefix_tokens
    return AttentionMaps(captured.block, captured.maps[..., first:, first:],
                         captured.inside[:, first:])


class _Capture:
    """The hooks around one attention module."""

    def __init__(self, model: nn.Module, name: str, module: Any, windows: _Windows | None,
                 softmaxes: _Softmaxes, receive: Callable[[AttentionMaps], None]) -> None:
        self.block = name.removesuffix('.attn') or type(module).__name__
        self.module = module
        self.windows = windows
        self.softmaxes = softmaxes
        self.receive = receive
        # From the inside out: what contains the module, itself included.
        around = [model.get_submodule('.'.join(name.split('.')[:length]))
                  for length in range(name.count('.') + 1, -1, -1)] if name else [module]
        self.cutter = next((outer for outer in around
                            if windows and windows.cutter in _class_names(outer)), module)
        self.prefix_tokens = next((count for outer in around if isinstance(
            count := getattr(outer, 'num_prefix_tokens', None), int)), 0)
        self.map_size = (0, 0)

    def hooks(self) -> Iterator[Any]:
        """Register them, and yield what removes each."""
        yield self.cutter.register_forward_pre_hook(self._note_size)
        yield self.module.register_forward_pre_hook(self._start)
        yield self.module.register_forward_hook(self._finish)

    def _note_size(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.windows:
            height, width = self.windows.axes
            self.map_size = (inputs[0].shape[height], inputs[0].shape[width])

    def _start(self, *_: Any) -> None:
        self.softmaxes.noted = []

    def _finish(self, *_: Any) -> None:
        noted, self.softmaxes.noted = self.softmaxes.noted or [], None
        shapes = [tuple(result.shape) for result in noted]
        heads = self.module.num_heads
        if len(shapes) == heads and all(len(shape) == 3 for shape in shapes):
            maps = torch.stack(noted, dim=1)  # cascaded: one head after the other
        elif len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == heads:
            maps = noted[0]
        else:
            raise UserError(f'block {self.block} has {heads} heads, but its softmax gives tensors '
                            f'of shapes {shapes}, in which their attention maps can\'t be found')
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
