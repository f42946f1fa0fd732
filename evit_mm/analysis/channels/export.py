"""Architectures of EfficientViT from the channels that a removal leaves."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from torch import Tensor

from ...arch import Arch
from ..arch_file import write_arch
from .gates import Site

__all__ = ['Suggestion', 'suggest_arch', 'write_suggestion']

_MULTIPLE = 4
"""Widths are multiples of this, which processors prefer."""

_TOLERANCE = 0.01
"""Accepted difference of an architecture's multiply-adds from the target, as a share."""


@dataclass(frozen=True)
class Suggestion:
    """Architecture with approximately the channels that a removal leaves.

    Attributes:
        arch: The architecture, with new ``key_dims`` and ``ffn_ratio``.
        target_macs: Multiply-adds of the network without exactly the removed channels.
        macs: Multiply-adds of ``arch``, whose widths are rounded and equal within a stage.
    """

    arch: Arch
    target_macs: int
    macs: int

    @property
    def within_tolerance(self) -> bool:
        """Return whether ``macs`` are within 1 % of ``target_macs``."""
        return abs(self.macs - self.target_macs) <= _TOLERANCE * self.target_macs


def suggest_arch(arch: Arch, sites: Sequence[Site], cost: Mapping[str, int],
                 kept: Mapping[str, Tensor], total: int) -> Suggestion:
    """Turn masks into widths: the widths of a stage are the mean over its blocks and heads.

    The means are rounded up or down to multiples of 4, in the combination whose multiply-adds are
    closest to the target. If that misses the target by more than 1 %, for example because the mean
    of a stage is less than 4, other widths move further from their means, starting with those that
    change least. Value channels stay: each head takes an equal part of ``embed_dims``.

    Args:
        arch: The architecture of the analyzed network.
        sites: Its channels.
        cost: Multiply-adds saved by removing one channel, by site.
        kept: Masks by site, (count,) of 0 and 1.
        total: Multiply-adds of the network.
    """
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        if site.kind != 'V':
            groups.setdefault((site.kind, _width_stage(arch, site)), []).append(site)
    target = total - sum(int(site.count - kept[site.name].sum()) * cost[site.name]
                         for site in sites)

    means = {group: sum(float(kept[site.name].sum()) for site in members) / len(members)
             for group, members in groups.items()}

    def distance(widths: Mapping[tuple[str, int], int]) -> int:
        return abs(_macs(groups, widths, cost, total) - target)

    def closest(options: Mapping[tuple[str, int], Sequence[int]]) -> dict[tuple[str, int], int]:
        return min((dict(zip(options, widths, strict=True))
                    for widths in product(*options.values())), key=distance)

    def neighbours(widths: Mapping[tuple[str, int], int], group: tuple[str, int]) -> list[int]:
        return _around(widths[group], groups[group][0].count)

    chosen = closest({group: _roundings(means[group], members[0].count)
                      for group, members in groups.items()})
    while distance(chosen) > _TOLERANCE * target:
        # Move one width, the one that stays closest to its mean; if every such step overshoots,
        # move several at once.
        steps = [{**chosen, group: width}
                 for group in groups for width in neighbours(chosen, group)]
        closer = [step for step in steps if distance(step) < distance(chosen)]
        if closer:
            chosen = min(closer, key=lambda widths: sum(
                abs(widths[group] - means[group]) / groups[group][0].count for group in groups))
            continue
        several = closest({group: neighbours(chosen, group) for group in groups})
        if distance(several) >= distance(chosen):
            break
        chosen = several
    key_dims = tuple(chosen.get(('QK', stage), width) for stage, width in enumerate(arch.key_dims))
    ratios = tuple(_ratio(chosen[('FFN', stage)], arch.embed_dims[stage])
                   if ('FFN', stage) in chosen else ratio
                   for stage, ratio in enumerate(arch.ffn_ratios))
    return Suggestion(replace(arch, key_dims=key_dims, ffn_ratio=ratios), target,
                      _macs(groups, chosen, cost, total))


def write_suggestion(path: Path, suggestion: Suggestion, *, config: str | os.PathLike[str],
                     total: int, shape: Sequence[int]) -> None:
    """Write the analyzed config with a suggested architecture.

    Args:
        path: A .py file.
        suggestion: The architecture.
        config: The analyzed config.
        total: Multiply-adds of its backbone.
        shape: Height and width of the image for which multiply-adds are counted.

    Raises:
        UserError: If the file can't be written.
    """
    target, macs = suggestion.target_macs, suggestion.macs
    write_arch(path, asdict(suggestion.arch), f'''\
{Path(config).name} with the widths that tools/analyze.py channels suggests.

Multiply-adds of the backbone at {shape[0]}x{shape[1]}:
    {total:>13,} before
    {target:>13,} without the removed channels ({target / total:.1%})
    {macs:>13,} of this architecture, with rounded widths ({macs / total:.1%})

key_dims and ffn_ratio are new. Masked value channels are still present, and counted: each head
takes an equal part of embed_dims, and all but the last feed the next head. Checkpoints of other
widths do not fit, so train from scratch:''', config=config)


def _width_stage(arch: Arch, site: Site) -> int:
    """Return the stage whose entry of `Arch` sets a site's width."""
    # The first half of a downsampling has the channels of the stage before it.
    before = site.block.startswith(f'{site.stage}>') and '.ffn1.' in site.name
    return site.stage - 1 if before else site.stage


def _roundings(mean: float, full: int) -> list[int]:
    """Return the multiples around a mean, at most the full width."""
    around = {rounded(mean / _MULTIPLE) * _MULTIPLE for rounded in (math.floor, math.ceil)}
    return sorted({min(max(width, _MULTIPLE), full) for width in around})


def _around(width: int, full: int) -> list[int]:
    """Return a width and the multiples below and above it, at most the full width."""
    below = (math.ceil(width / _MULTIPLE) - 1) * _MULTIPLE
    above = (width // _MULTIPLE + 1) * _MULTIPLE
    return sorted({max(below, min(_MULTIPLE, full)), width, min(above, full)})


def _macs(groups: Mapping[tuple[str, int], Sequence[Site]],
          widths: Mapping[tuple[str, int], int], cost: Mapping[str, int], total: int) -> int:
    return total - sum((site.count - widths[group]) * cost[site.name]
                       for group, members in groups.items() for site in members)


def _ratio(hidden: int, width: int) -> float:
    """Return the shortest number whose product with ``width`` truncates to ``hidden``."""
    digits = 0
    while True:
        ratio = math.ceil(hidden / width * 10 ** digits) / 10 ** digits
        if int(width * ratio) == hidden:
            return ratio
        digits += 1

