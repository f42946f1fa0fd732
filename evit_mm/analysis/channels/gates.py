"""Gates of 1 on channels that can go without any other part of a block noticing.

A gate stands where a channel's whole effect passes, so that a gate of 0 is the same as a network
without the channel, and its gradient is that of the channel's removal:

- QK, query and key channel c of a head: they act through their product alone, so one gate on the
  query is one on both. In our blocks it stands behind the query's depthwise convolution, whose
  channel c goes with them. (A gate on each would count every removal twice.)
- V, value channel c: before the projection, whose input c goes with it. In our blocks the value
  also feeds the next head, so there the gate is on the value itself, for both of its uses.
- FFN, hidden channel c: behind the activation, before the second projection.

A multiplication by 1 changes no bit of the output.
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
from ...models.layers import ConvNorm, FeedForward

__all__ = ['KINDS', 'Site', 'find_sites', 'gated', 'macs_per_channel', 'total_macs']

KINDS = ('QK', 'V', 'FFN')

_STAGE = re.compile(r'(?:^|\.)(?:stages|layers)[._](\d+)')
_BLOCK = re.compile(r'(?:^|\.)blocks[._](\d+)')


@dataclass(frozen=True)
class Site:
    """Channels of one kind, in one head or one feed-forward part.

    Attributes:
        name: Where they are; unique in the model.
        kind: One of `KINDS`.
        stage: From 0.
        block: The block's name in tables: ``'2.1'`` is the first of stage 2, ``'1>2'`` leads there.
        width: Channels of the block's input.
        count: Number of channels.
        module: The module whose input or output the gates multiply.
        at_input: Whether they multiply its input.
        offset: Which of that tensor's channels is the first of these.
        channel_dim: Which of that tensor's dimensions counts channels.
        cost: Multiply-adds that one channel less saves, from the shape of that tensor.
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
    """The channels of our blocks, or of timm's ViT, DeiT and Swin, in the order of the network.

    Raises:
        UserError: If there are none, or an attention works otherwise.
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
        raise UserError(f'{type(model).__name__} has no channels that this analysis knows: it '
                        'takes EfficientViT (not in its deploy form) and timm\'s ViT, DeiT and '
                        'Swin')
    return sites


def _our_attention(path: str, attention: Any) -> Iterator[Site]:
    window = attention.window_size ** 2
    width = attention.value_dim * attention.num_heads
    for head, (qkv, query_conv) in enumerate(zip(attention.qkv, attention.query_conv, strict=True)):
        per_token = (2 * qkv.conv.in_channels + query_conv.conv.kernel_size[0] ** 2 + window)
        yield _site(f'{path}.{head}', 'QK', width, attention.key_dim, query_conv,
                    cost=_per_token(attention.key_dim, per_token))
        # Saves nothing: the next head still takes its full share of the channels.
        yield _site(f'{path}.{head}', 'V', width, attention.value_dim, qkv,
                    offset=2 * attention.key_dim, cost=lambda shape: 0)


def _our_ffn(path: str, ffn: Any) -> Iterator[Site]:
    hidden, width = ffn.expand.conv.out_channels, ffn.expand.conv.in_channels
    yield _site(path, 'FFN', width, hidden, ffn.project, at_input=True,
                cost=_per_token(hidden, width + ffn.project.conv.out_channels))


def _timm_part(path: str, module: Any) -> Iterator[Site]:
    """The sites of timm's modules; without timm no module is one."""
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
        raise UserError(f'{path} is an attention of a kind that this analysis does not know '
                        f'({type(module).__name__})')


def _timm_attention(path: str, attention: Any) -> Iterator[Site]:
    inside = [getattr(attention, name, None) for name in ('q_norm', 'k_norm', 'norm', 'gate')]
    if not all(part is None or isinstance(part, nn.Identity) for part in inside):
        raise UserError(f'{path} normalises or gates its channels, so they can\'t be removed one '
                        'by one')
    width = attention.qkv.in_features
    total = attention.qkv.out_features // 3
    head_dim = total // attention.num_heads
    for head in range(attention.num_heads):
        yield _site(f'{path}.{head}', 'QK', width, head_dim, attention.qkv,
                    offset=head * head_dim, channel_dim=-1,
                    cost=_per_token(3 * total, 2 * width, attended=True))
    yield _site(path, 'V', width, total, attention.proj, at_input=True, channel_dim=-1,
                cost=_per_token(total, width + attention.proj.out_features, attended=True))


def _timm_ffn(path: str, ffn: Any) -> Site:
    if not (isinstance(ffn.fc1, nn.Linear) and isinstance(ffn.norm, nn.Identity)):
        raise UserError(f'{path} is a feed-forward part of a kind whose channels can\'t be removed '
                        'one by one')
    hidden, width = ffn.fc1.out_features, ffn.fc1.in_features
    return _site(path, 'FFN', width, hidden, ffn.fc2, at_input=True, channel_dim=-1,
                 cost=_per_token(hidden, width + ffn.fc2.out_features))


def _per_token(channels: int, macs: int, attended: bool = False) -> Callable[[Sequence[int]], int]:
    """The cost of a channel that meets each token once.

    Args:
        channels: Channels of the gated tensor.
        macs: Multiply-adds for each token.
        attended: Add one for each of the tokens that attend to each other, (..., N, C).
    """
    def cost(shape: Sequence[int]) -> int:
        tokens = torch.Size(shape).numel() // channels
        return tokens * (macs + (shape[-2] if attended else 0))

    return cost


def _site(path: str, kind: str, width: int, count: int, module: nn.Module, *,
          at_input: bool = False, offset: int = 0, channel_dim: int = 1,
          cost: Callable[[Sequence[int]], int]) -> Site:
    found = _STAGE.search(path)
    stage = int(found[1]) if found else 0
    block = _BLOCK.search(path)
    if block:
        label = f'{stage + 1}.{int(block[1]) + 1}'
    else:
        label = f'{stage}>{stage + 1}' if 'downsample' in path else path
    return Site(f'{path}.{kind}', kind, stage, label, width, count, module, at_input, offset,
                channel_dim, cost)


@contextmanager
def gated(sites: Sequence[Site], kept: Mapping[str, Tensor]) -> Iterator[list[Tensor]]:
    """Put gates on a model's channels while the block runs.

    Args:
        sites: Of that model.
        kept: By site, (count,) of 1 where the channel is there and 0 where it is masked; without
            an entry all are there.

    Yields:
        list[Tensor]: The gates of each site, (count,), which take gradients.
    """
    gates = [kept[site.name].clone() if site.name in kept else torch.ones(site.count)
             for site in sites]
    gates = [gate.requires_grad_() for gate in gates]
    places: dict[tuple[nn.Module, bool], list[tuple[Site, Tensor]]] = {}
    for site, gate in zip(sites, gates, strict=True):
        places.setdefault((site.module, site.at_input), []).append((site, gate))
    with ExitStack() as stack:
        for (module, at_input), members in places.items():
            stack.enter_context(_multiplying(module, at_input, members))
        yield gates


@contextmanager
def _multiplying(module: nn.Module, at_input: bool, members: Sequence[tuple[Site, Tensor]]
                 ) -> Iterator[None]:
    def multiplied(x: Tensor) -> Tensor:
        dim = members[0][0].channel_dim
        parts, end = [], 0
        for site, gate in members:  # in the order of their channels
            parts += [gate.new_ones(site.offset - end), gate]
            end = site.offset + site.count
        factors = torch.cat([*parts, parts[-1].new_ones(x.shape[dim] - end)]).to(x)
        if x.requires_grad:
            # On a CPU, torch's BN gives wrong gradients (seen in 2.11) where the gradient of one
            # single window comes to it transposed, as queries' do.
            x.register_hook(lambda gradient: gradient.contiguous())
        return x * (factors[:, None, None] if dim == 1 else factors)

    with _tensor_hook(module, at_input, multiplied), _called_by_itself(module):
        yield


@contextmanager
def _called_by_itself(module: nn.Module) -> Iterator[None]:
    """Have our attention call its convolutions, where it would fold them and go around hooks."""
    if not isinstance(module, ConvNorm):
        yield
        return
    folds, module.fold_norm = module.fold_norm, False
    try:
        yield
    finally:
        module.fold_norm = folds


@contextmanager
def _tensor_hook(module: nn.Module, at_input: bool, edit: Callable[[Tensor], Tensor | None]
                 ) -> Iterator[None]:
    """Replace a module's input or output by what ``edit`` makes of it, unless that is None."""
    if at_input:
        handle = module.register_forward_pre_hook(lambda _, inputs: edit(inputs[0]))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: edit(output))
    try:
        yield
    finally:
        handle.remove()


def total_macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of convolutions and matrix products for one image (1, 3, H, W)."""
    # torch does not count fused attention on the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return count_macs({'model': model}, image)['model']


def macs_per_channel(model: nn.Module, sites: Sequence[Site], image: Tensor) -> dict[str, int]:
    """What one channel less at each site saves for one image (1, 3, H, W), in multiply-adds.

    Raises:
        UserError: If the model goes around some of its modules, so that gates have no effect.
    """
    shapes: dict[str, Sequence[int]] = {}

    def watch(site: Site) -> Callable[[Tensor], None]:
        return lambda x: shapes.__setitem__(site.name, tuple(x.shape))

    with ExitStack() as stack, torch.no_grad():
        for site in sites:
            stack.enter_context(_tensor_hook(site.module, site.at_input, watch(site)))
        model(image)
    around = [site.name for site in sites if site.name not in shapes]
    if around:
        raise UserError(f'{type(model).__name__} computes {around[0]} without calling the module '
                        'that it belongs to, so no gate can be put there: use its plain form')
    return {site.name: site.cost(shapes[site.name]) for site in sites}
