"""Find the width at which a model is as fast as another one."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Protocol

__all__ = ['Match', 'Speed', 'Widths', 'match_speed', 'rungs', 'variations']

Widths = tuple[int, ...]

_MORE = 6
"""Widths that are tried after one that fits, but not well: the next measurement may differ."""


class Speed(Protocol):
    """Measures how many times as fast a model of these widths is; 1 is as fast as wanted."""

    def __call__(self, widths: Widths, *, careful: bool) -> float: ...


@dataclass(frozen=True)
class Match:
    """What a search ended with.

    Attributes:
        widths: The best that was found.
        speed: Its careful measurement, relative to the wanted speed.
        tries: How many widths were measured.
        found: Whether the speed is within the tolerance.
    """

    widths: Widths
    speed: float
    tries: int
    found: bool


def rungs(base: Widths, units: Widths, *, smallest: float = 0.2, largest: float = 4.0
          ) -> list[Widths]:
    """Widths that grow together, from narrow to wide.

    Each is a multiple of its unit. They round up at different scales, so that one rung is wider
    than the one before in few of its widths: a finer ladder than scaling and rounding all.

    Args:
        base: The widths at scale 1.
        units: What each must be a multiple of.
        smallest: Scale of the first rung.
        largest: Scale of the last rung.
    """
    turns = {smallest}
    for width, unit in zip(base, units, strict=True):
        turns.update(scale for steps in range(int(largest * width / unit) + 1)
                     if smallest < (scale := (steps + 0.5) * unit / width) <= largest)
    # A little behind the point where the rounding turns.
    found = [tuple(max(1, round(scale * (1 + 1e-9) * width / unit)) * unit
                   for width, unit in zip(base, units, strict=True)) for scale in sorted(turns)]
    return list(dict.fromkeys(found))


def variations(widths: Widths, units: Widths) -> list[Widths]:
    """The neighbours of ``widths``: each a unit narrower or wider or not, apart from the others."""
    choices = [[width + step * unit for step in (-1, 0, 1) if width + step * unit > 0]
               for width, unit in zip(widths, units, strict=True)]
    return [found for found in product(*choices) if found != widths]


def match_speed(ladder: Sequence[Widths], units: Widths, speed: Speed,
                cost: Callable[[Widths], float], wanted_cost: float, *, tolerance: float = 0.02,
                max_tries: int = 30) -> Match:
    """Find widths whose speed is 1 to ``tolerance``, better to half of it.

    Climbs the ladder first, by the cost that the last speed suggests; between two rungs that are
    too fast and too slow it tries their neighbours. A quick measurement that fits is repeated with
    care, and the search goes on where that disagrees, or a little where it fits just so.

    Args:
        ladder: Widths from fast to slow, at least one.
        units: What each width must be a multiple of.
        speed: Measures.
        cost: What time is roughly in proportion to, such as multiply-adds.
        wanted_cost: Where to start: the cost of the model whose speed is wanted.
        tolerance: How far from 1 is near enough.
        max_tries: How many widths are measured at most.
    """
    cost = cache(cost)
    quick: dict[Widths, float] = {}
    careful: dict[Widths, float] = {}
    first_fit: list[int] = []  # how many had been tried by then

    def fits(share_of_tolerance: float = 1.0) -> bool:
        return any(abs(value - 1) <= share_of_tolerance * tolerance for value in careful.values())

    def measured(widths: Widths) -> float:
        if widths not in quick:
            quick[widths] = speed(widths, careful=False)
            if abs(quick[widths] - 1) <= tolerance:
                quick[widths] = careful[widths] = speed(widths, careful=True)
            if fits() and not first_fit:
                first_fit.append(len(quick))
        return quick[widths]

    def done() -> bool:
        return (len(quick) >= max_tries or fits(0.5)
                or bool(first_fit) and len(quick) >= first_fit[0] + _MORE)

    fast, slow = -1, len(ladder)  # rungs known to be too fast, too slow
    guess = _rung_of_cost(ladder, cost, wanted_cost)
    while slow - fast > 1 and not done():
        index = min(max(guess, fast + 1), slow - 1)
        found = measured(ladder[index])
        if found > 1:
            fast = index
        else:
            slow = index
        guess = _rung_of_cost(ladder, cost, cost(ladder[index]) * found)
        if not fast < guess < slow:  # the costs mislead
            guess = (fast + slow) // 2
    # Past either end of the ladder neighbours would not help.
    while not done() and fast >= 0 and slow < len(ladder):
        best = _nearest(quick)
        wanted_cost = cost(best) * quick[best]
        left = [widths for widths in variations(best, units) if widths not in quick]
        if not left:
            break
        measured(min(left, key=lambda widths: abs(cost(widths) - wanted_cost)))
    best = _nearest(careful) if fits() else _nearest(quick)
    if best not in careful:
        careful[best] = speed(best, careful=True)
    return Match(best, careful[best], len(quick), abs(careful[best] - 1) <= tolerance)


def _rung_of_cost(ladder: Sequence[Widths], cost: Callable[[Widths], float], wanted: float) -> int:
    """The rung whose cost is nearest to ``wanted``."""
    above = bisect_left(ladder, wanted, key=cost)
    if above == 0:
        return 0
    if above == len(ladder):
        return len(ladder) - 1
    return above if cost(ladder[above]) - wanted < wanted - cost(ladder[above - 1]) else above - 1


def _nearest(speeds: dict[Widths, float]) -> Widths:
    return min(speeds, key=lambda widths: abs(speeds[widths] - 1))
