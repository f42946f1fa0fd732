"""Gates on channels that can be removed without changing any other part of a block.

A gate is a factor of 1 at a place that a channel's whole effect passes. A gate of 0 is the same as
a network without the channel, and the gradient of the gate is that of removing the channel:

- QK, query and key channel c of a head: they act only through their product, so one gate on the
  query covers both (a gate on each would count every removal twice). In our blocks the gate is
  after the query's depthwise convolution, whose channel c is removed with them.
- V, value channel c: before the projection, whose input c is removed with it. In our blocks the
  value also feeds the next head, so there the gate is on the value itself, for both of its uses.
- FFN, hidden channel c: after the activation, before the second projection.

Multiplying by 1 changes no bit of the output.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...benchmark.flops import count_macs
from ...errors import UserError
from ...models.attention import CascadedGroupAttention
from ...models.layers import FeedForward

__all__ = ['KINDS', 'Site', 'find_sites', 'gated', 'macs_per_channel', 'total_macs']

KINDS = ('QK', 'V', 'FFN')

_STAGE = re.compile(r'(?:^|\.)(?:stages|layers)[._](\d+)')
_BLOCK = re.compile(r'(?:^|\.)blocks[._](\d+)')


@dataclass(frozen=True)
class Site:
    """Channels of one kind in one head or one feed-forward part.

    Attributes:
        name: Path of the module and kind; unique in the model.
        kind: One of `KINDS`.
        stage: Index of the stage, from 0.
        block: Name of the block in tables: ``'2.1'`` is the first block of stage 2, ``'1>2'`` the
            downsampling before that stage.
        width: Channels of the block's input.
        count: Number of channels.
        module: Module whose input or output the gates multiply.
        at_input: Whether the gates multiply the module's input.
        offset: Index of the first of these channels in that tensor.
        channel_dim: Dimension of the channels in that tensor.
        cost: Returns the multiply-adds saved by removing one channel, from that tensor's shape.
    """

    name: str
    kind: str
    stage: int
    block: str
    width: int
    count: int
    module: nn.Module
    at_input: bool
    offset: int
    channel_dim: int
    cost: Callable[[Sequence[int]], int]


def find_sites(model: nn.Module) -> list[Site]:
    """Return the removable channels of EfficientViT, or of timm's ViT, DeiT and Swin, in order.

    Raises:
        UserError: If there are none, or an attention module is of an unknown kind.
    """
    sites: list[Site] = []
    for path, module in model.named_modules():
        if isinstance(module, CascadedGroupAttention):
            sites += _our_attention(path, module)
        elif isinstance(module, FeedForward):
            sites += _our_ffn(path, module)
        else:
            sites += _timm_part(path, module)
    if not sites:
        raise UserError(f'{type(model).__name__} has no channels that this analysis can rank: use '
                        'EfficientViT (not in its deploy form), or timm\'s ViT, DeiT or Swin')
    return sites


def _our_attention(path: str, attention: Any) -> Iterator[Site]:
    window = attention.window_size ** 2
    for head, (qkv, query_conv) in enumerate(zip(attention.qkv, attention.query_conv, strict=True)):
        value_dim, key_dim = qkv.conv.in_channels, query_conv.conv.out_channels
        width = value_dim * len(attention.qkv)
        per_token = 2 * value_dim + query_conv.conv.kernel_size[0] ** 2 + window
        yield _site(f'{path}.{head}', 'QK', width, key_dim, query_conv,
                    cost=_cost_per_token(key_dim, per_token))
        # Saves nothing: the next head still takes its full share of the channels.
        yield _site(f'{path}.{head}', 'V', width, value_dim, qkv, offset=2 * key_dim,
                    cost=lambda shape: 0)


def _our_ffn(path: str, ffn: Any) -> Iterator[Site]:
    hidden, width = ffn.expand.conv.out_channels, ffn.expand.conv.in_channels
    yield _site(path, 'FFN', width, hidden, ffn.project, at_input=True,
                cost=_cost_per_token(hidden, width + ffn.project.conv.out_channels))


def _timm_part(path: str, module: Any) -> Iterator[Site]:
    """Yield the sites of a module of timm; nothing for other modules, or without timm."""
    origin = type(module).__module__
    if not origin.startswith('timm.'):
        return
    from timm.layers import Attention, Mlp
    from timm.models.swin_transformer import WindowAttention

    if isinstance(module, Attention | WindowAttention):
        yield from _timm_attention(path, module)
    elif isinstance(module, Mlp):
        yield _timm_ffn(path, module)
    elif hasattr(module, 'qkv') or hasattr(module, 'q_proj'):
        raise UserError(f'{path} is an attention module of an unsupported kind '
                        f'({type(module).__name__})')


def _timm_attention(path: str, attention: Any) -> Iterator[Site]:
    inside = [getattr(attention, name, None) for name in ('q_norm', 'k_norm', 'norm', 'gate')]
    if not all(part is None or isinstance(part, nn.Identity) for part in inside):
        raise UserError(f'{path} normalises or gates its channels, so they can\'t be removed '
                        'individually')
    width = attention.qkv.in_features
    total = attention.qkv.out_features // 3
    head_dim = total // attention.num_heads
    for head in range(attention.num_heads):
        yield _site(f'{path}.{head}', 'QK', width, head_dim, attention.qkv,
                    offset=head * head_dim, channel_dim=-1,
                    cost=_cost_per_token(3 * total, 2 * width, attended=True))
    yield _site(path, 'V', width, total, attention.proj, at_input=True, channel_dim=-1,
                cost=_cost_per_token(total, width + attention.proj.out_features, attended=True))


def _timm_ffn(path: str, ffn: Any) -> Site:
    if not (isinstance(ffn.fc1, nn.Linear) and isinstance(ffn.norm, nn.Identity)):
        raise UserError(f'{path} is a feed-forward part whose channels can\'t be removed '
                        'individually')
    hidden, width = ffn.fc1.out_features, ffn.fc1.in_features
    return _site(path, 'FFN', width, hidden, ffn.fc2, at_input=True, channel_dim=-1,
                 cost=_cost_per_token(hidden, width + ffn.fc2.out_features))


def _cost_per_token(channels: int, macs: int, attended: bool = False
                    ) -> Callable[[Sequence[int]], int]:
    """Return the cost function of a channel that is used once per token.

    Args:
        channels: Channels of the gated tensor.
        macs: Multiply-adds per token.
        attended: Whether to add one multiply-add for each of the N tokens of (..., N, C), to which
            a token attends.
    """
    def cost(shape: Sequence[int]) -> int:
        tokens = torch.Size(shape).numel() // channels
        return tokens * (macs + (shape[-2] if attended else 0))

    return cost


def _site(path: str, kind: str, width: int, count: int, module: nn.Module, *,
          at_input: bool = False, offset: int = 0, channel_dim: int = 1,
          cost: Callable[[Sequence[int]], int]) -> Site:
    stage_match = _STAGE.search(path)
    stage = int(stage_match[1]) if stage_match else 0
    block = _BLOCK.search(path)
    if block:
        label = f'{stage + 1}.{int(block[1]) + 1}'
    else:
        label = f'{stage}>{stage + 1}' if 'downsample' in path else path
    return Site(f'{path}.{kind}', kind, stage, label, width, count, module, at_input, offset,
                channel_dim, cost)


@contextmanager
def gated(sites: Sequence[Site], kept: Mapping[str, Tensor]) -> Iterator[list[Tensor]]:
    """Put gates on a model's channels within the context.

    Args:
        sites: The sites of the model.
        kept: Masks by site, (count,) of 1 for channels that stay and 0 for masked ones. A site
            without a mask keeps all channels.

    Yields:
        list[Tensor]: The gates of each site, (count,), which require gradients.
    """
    gates = [kept[site.name].clone() if site.name in kept else torch.ones(site.count)
             for site in sites]
    gates = [gate.requires_grad_() for gate in gates]
    places: dict[tuple[nn.Module, bool], list[tuple[Site, Tensor]]] = {}
    for site, gate in zip(sites, gates, strict=True):
        places.setdefault((site.module, site.at_input), []).append((site, gate))
    with ExitStack() as stack:
        for (module, at_input), members in places.items():
            stack.enter_context(_tensor_hook(module, at_input, _multiplication(members)))
        yield gates


def _multiplication(members: Sequence[tuple[Site, Tensor]]) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies a tensor by the gates of its sites."""
    def multiply(x: Tensor) -> Tensor:
        dim = members[0][0].channel_dim
        parts, end = [], 0
        for site, gate in members:  # in the order of their channels
            parts += [gate.new_ones(site.offset - end), gate]
            end = site.offset + site.count
        factors = torch.cat([*parts, parts[-1].new_ones(x.shape[dim] - end)]).to(x)
        if x.requires_grad:
            # On the CPU, torch's BN computes wrong gradients (seen in 2.11) from the transposed
            # gradient of a single window, which queries have.
            x.register_hook(lambda gradient: gradient.contiguous())
        return x * (factors[:, None, None] if dim == 1 else factors)

    return multiply


@contextmanager
def _tensor_hook(module: nn.Module, at_input: bool, edit: Callable[[Tensor], Tensor | None]
                 ) -> Iterator[None]:
    """Pass a module's input or output through ``edit``; None leaves it unchanged."""
    if at_input:
        handle = module.register_forward_pre_hook(lambda _, inputs: edit(inputs[0]))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: edit(output))
    try:
        yield
    finally:
        handle.remove()


def total_macs(model: nn.Module, image: Tensor) -> int:
    """Count the multiply-adds of convolutions and matrix products for one image (1, 3, H, W)."""
    # torch does not count fused attention on the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return count_macs({'model': model}, image)['model']


def macs_per_channel(model: nn.Module, sites: Sequence[Site], image: Tensor) -> dict[str, int]:
    """Return the multiply-adds saved by one channel less, by site, for one image (1, 3, H, W).

    Raises:
        UserError: If the model does not call one of the modules, so that gates have no effect.
    """
    shapes: dict[str, Sequence[int]] = {}

    def watch(site: Site) -> Callable[[Tensor], None]:
        return lambda x: shapes.__setitem__(site.name, tuple(x.shape))

    with ExitStack() as stack, torch.no_grad():
        for site in sites:
            stack.enter_context(_tensor_hook(site.module, site.at_input, watch(site)))
        model(image)
    not_called = [site.name for site in sites if site.name not in shapes]
    if not_called:
        raise UserError(f'{type(model).__name__} computes {not_called[0]} without calling its '
                        'module, so it can\'t be gated: use the plain form of the model')
    return {site.name: site.cost(shapes[site.name]) for site in sites}
