"""The widths that an analysis suggests, as an architecture that `EfficientViT` builds."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UserError
from ...models import Arch
from .gates import Site

__all__ = ['Suggestion', 'suggest_arch', 'write_arch']

_MULTIPLE = 4
"""Widths are multiples of this, which processors like."""

_TOLERANCE = 0.01
"""How far from the promised multiply-adds those of an architecture may be, as a share."""


@dataclass(frozen=True)
class Suggestion:
    """An architecture out of the channels that are left.

    Attributes:
        arch: With new ``key_dims`` and ``ffn_ratio``.
        promised: Multiply-adds when just the removed channels are missing.
        macs: Multiply-adds of ``arch``, whose widths are the same in a whole stage, and rounded.
    """

    arch: Arch
    promised: int
    macs: int

    @property
    def near(self) -> bool:
        """Whether ``macs`` are within 1 % of ``promised``."""
        return abs(self.macs - self.promised) <= _TOLERANCE * self.promised


def suggest_arch(arch: Arch, sites: Sequence[Site], cost: Mapping[str, int],
                 kept: Mapping[str, Tensor], total: int) -> Suggestion:
    """Turn masks into widths: each stage's are the mean of what its blocks and heads keep.

    The means are rounded up or down to multiples of 4, in the combination whose multiply-adds are
    nearest to those that are promised. Where that misses them by more than 1 %, as it does where
    the means of some stages are less than 4, the other widths go further from their means, those
    first that have to change least. Value channels stay: each head takes an equal part of
    ``embed_dims``.

    Args:
        arch: The architecture of the network that was analysed.
        sites: Its channels.
        cost: Multiply-adds that one channel less saves, by site.
        kept: Masks by site, (count,) of 0 and 1.
        total: Multiply-adds of the network.
    """
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in sites:
        if site.kind != 'V':
            groups.setdefault((site.kind, _width_stage(arch, site)), []).append(site)
    promised = total - sum(int(site.count - kept[site.name].sum()) * cost[site.name]
                           for site in sites)

    means = {group: sum(float(kept[site.name].sum()) for site in members) / len(members)
             for group, members in groups.items()}

    def distance(widths: Mapping[tuple[str, int], int]) -> int:
        return abs(_macs(groups, widths, cost, total) - promised)

    def nearest(options: Mapping[tuple[str, int], Sequence[int]]) -> dict[tuple[str, int], int]:
        return min((dict(zip(options, widths, strict=True))
                    for widths in product(*options.values())), key=distance)

    def neighbours(widths: Mapping[tuple[str, int], int], group: tuple[str, int]) -> list[int]:
        return _around(widths[group], groups[group][0].count)

    chosen = nearest({group: _roundings(means[group], members[0].count)
                      for group, members in groups.items()})
    while distance(chosen) > _TOLERANCE * promised:
        # One width further, the one that then is nearest to its mean; or, where each such step
        # would go too far, several at once.
        steps = [{**chosen, group: width}
                 for group in groups for width in neighbours(chosen, group)]
        nearer = [step for step in steps if distance(step) < distance(chosen)]
        if nearer:
            chosen = min(nearer, key=lambda widths: sum(
                abs(widths[group] - means[group]) / groups[group][0].count for group in groups))
            continue
        several = nearest({group: neighbours(chosen, group) for group in groups})
        if distance(several) >= distance(chosen):
            break
        chosen = several
    key_dims = tuple(chosen.get(('QK', stage), width) for stage, width in enumerate(arch.key_dims))
    ratios = tuple(_ratio(chosen[('FFN', stage)], arch.embed_dims[stage])
                   if ('FFN', stage) in chosen else ratio
                   for stage, ratio in enumerate(_ratios(arch)))
    widths: dict[str, Any] = dict(key_dims=key_dims, ffn_ratio=ratios)
    return Suggestion(replace(arch, **widths), promised, _macs(groups, chosen, cost, total))


def write_arch(path: Path, suggestion: Suggestion, *, config: str, total: int,
               shape: Sequence[int]) -> None:
    """Write an architecture as a config: the one that was analysed, with this architecture.

    Args:
        path: A .py file.
        suggestion: The architecture.
        config: What was analysed.
        total: Multiply-adds of its backbone.
        shape: Height and width that multiply-adds are counted for.

    Raises:
        UserError: If the file can't be written.
    """
    fields = '\n'.join(f'    {name}={value!r},' for name, value in asdict(suggestion.arch).items())
    text = f'''"""{Path(config).name} with the widths that tools/analyze.py channels suggests.

Multiply-adds of the backbone at {shape[0]}x{shape[1]}:
    {total:>13,} before
    {suggestion.promised:>13,} without the removed channels ({suggestion.promised / total:.1%})
    {suggestion.macs:>13,} of this architecture, with rounded widths ({suggestion.macs / total:.1%})

key_dims and ffn_ratio are new. Value channels that were masked are still here, and counted: each
head takes an equal part of embed_dims, and all but the last feed the next one. Weights of other
widths do not fit, so

    tools/train.py {path} --from-scratch
"""

_base_ = {os.path.relpath(config, path.parent)!r}

arch = dict(
{fields}
)
model = dict(backbone=dict(arch=dict(_delete_=True, **arch), init_cfg=None))
'''
    try:
        path.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(f'--export-arch {path}: can\'t be written ({error.strerror})') from error


def _ratios(arch: Arch) -> tuple[float, ...]:
    ratio: Any = arch.ffn_ratio
    return tuple(ratio) if isinstance(ratio, tuple) else (ratio,) * len(arch.embed_dims)


def _width_stage(arch: Arch, site: Site) -> int:
    """The stage whose entry of `Arch` sets a site's width."""
    # The first half of what leads to a stage works on the channels of the stage before.
    before = site.block.startswith(f'{site.stage}>') and '.ffn1.' in site.name
    return site.stage - 1 if before else site.stage


def _roundings(mean: float, full: int) -> list[int]:
    """The multiples around the mean of what sites of one width keep, within that width."""
    around = {rounded(mean / _MULTIPLE) * _MULTIPLE for rounded in (math.floor, math.ceil)}
    return sorted({min(max(width, _MULTIPLE), full) for width in around})


def _around(width: int, full: int) -> list[int]:
    """A width, the multiple below it and the one above, within the full width."""
    below = (math.ceil(width / _MULTIPLE) - 1) * _MULTIPLE
    above = (width // _MULTIPLE + 1) * _MULTIPLE
    return sorted({max(below, min(_MULTIPLE, full)), width, min(above, full)})


def _macs(groups: Mapping[tuple[str, int], Sequence[Site]],
          widths: Mapping[tuple[str, int], int], cost: Mapping[str, int], total: int) -> int:
    return total - sum((site.count - widths[group]) * cost[site.name]
                       for group, members in groups.items() for site in members)


def _ratio(hidden: int, width: int) -> float:
    """The shortest number whose product with ``width``, cut to a whole number, is ``hidden``."""
    digits = 0
    while True:
        ratio = math.ceil(hidden / width * 10 ** digits) / 10 ** digits
        if int(width * ratio) == hidden:
            return ratio
        digits += 1

