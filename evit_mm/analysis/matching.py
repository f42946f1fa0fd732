"""Search for the widths at which a model is as fast as another one."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Protocol

__all__ = ['Match', 'Speed', 'Widths', 'match_speed', 'neighbours', 'scaled_widths']

Widths = tuple[int, ...]

_EXTRA_TRIES = 6
"""Widths to try after the first match, if that match is in the outer half of the tolerance."""


class Speed(Protocol):
    """Measurement of a model's speed, relative to the reference; 1 is equally fast."""

    def __call__(self, widths: Widths, *, careful: bool) -> float: ...


@dataclass(frozen=True)
class Match:
    """Result of a search.

    Attributes:
        widths: The best widths.
        speed: Their speed relative to the reference, from a careful measurement.
        tries: Number of widths that were measured.
        within_tolerance: Whether the speed is within the tolerance.
    """

    widths: Widths
    speed: float
    tries: int
    within_tolerance: bool


def scaled_widths(base: Widths, units: Widths, *, smallest: float = 0.2, largest: float = 4.0
                  ) -> list[Widths]:
    """Return widths scaled from ``base``, from narrow to wide.

    Each width is rounded to a multiple of its unit. The list has an entry for every scale at which
    one of the widths rounds up, which makes it finer than a list of equidistant scales.

    Args:
        base: The widths at scale 1.
        units: The unit of each width.
        smallest: Scale of the first entry.
        largest: Scale of the last entry.
    """
    scales = {smallest}
    for width, unit in zip(base, units, strict=True):
        scales.update(scale for steps in range(int(largest * width / unit) + 1)
                      if smallest < (scale := (steps + 0.5) * unit / width) <= largest)
    # Slightly above the scale at which the rounding changes.
    ladder = [tuple(max(1, round(scale * (1 + 1e-9) * width / unit)) * unit
                    for width, unit in zip(base, units, strict=True)) for scale in sorted(scales)]
    return list(dict.fromkeys(ladder))


def neighbours(widths: Widths, units: Widths) -> list[Widths]:
    """Return all other widths that differ by at most one unit in each width."""
    choices = [[width + step * unit for step in (-1, 0, 1) if width + step * unit > 0]
               for width, unit in zip(widths, units, strict=True)]
    return [choice for choice in product(*choices) if choice != widths]


def match_speed(ladder: Sequence[Widths], units: Widths, speed: Speed,
                cost: Callable[[Widths], float], reference_cost: float, *,
                tolerance: float = 0.02, max_tries: int = 30) -> Match:
    """Find widths whose speed is 1 within ``tolerance``, if possible within half of it.

    Searches the ladder first: the next entry is the one whose cost the last measured speed
    suggests. Between two adjacent entries, one too fast and one too slow, it tries their
    neighbours. A quick measurement that matches is repeated carefully. If the careful one
    disagrees the search continues; if it is in the outer half of the tolerance, for a few tries.

    Args:
        ladder: Widths from fast to slow, at least one.
        units: The unit of each width.
        speed: The measurement.
        cost: A quantity roughly proportional to time, such as multiply-adds.
        reference_cost: The reference's cost, where the search starts.
        tolerance: Largest accepted difference from 1.
        max_tries: Largest number of widths to measure.
    """
    cost = cache(cost)
    quick: dict[Widths, float] = {}
    careful: dict[Widths, float] = {}
    tries_at_match: list[int] = []

    def matches(tolerance: float) -> bool:
        return any(abs(value - 1) <= tolerance for value in careful.values())

    def measure(widths: Widths) -> float:
        if widths not in quick:
            quick[widths] = speed(widths, careful=False)
            if abs(quick[widths] - 1) <= tolerance:
                quick[widths] = careful[widths] = speed(widths, careful=True)
            if matches(tolerance) and not tries_at_match:
                tries_at_match.append(len(quick))
        return quick[widths]

    def is_done() -> bool:
        return (len(quick) >= max_tries or matches(tolerance / 2)
                or bool(tries_at_match) and len(quick) >= tries_at_match[0] + _EXTRA_TRIES)

    fast, slow = -1, len(ladder)  # entries known to be too fast, and too slow
    guess = _index_of_cost(ladder, cost, reference_cost)
    while slow - fast > 1 and not is_done():
        index = min(max(guess, fast + 1), slow - 1)
        measured = measure(ladder[index])
        if measured > 1:
            fast = index
        else:
            slow = index
        guess = _index_of_cost(ladder, cost, cost(ladder[index]) * measured)
        if not fast < guess < slow:  # the cost is misleading
            guess = (fast + slow) // 2
    # Beyond either end of the ladder neighbours can't help.
    while not is_done() and fast >= 0 and slow < len(ladder):
        best = _closest(quick)
        target_cost = cost(best) * quick[best]
        untried = [widths for widths in neighbours(best, units) if widths not in quick]
        if not untried:
            break
        measure(min(untried, key=lambda widths: abs(cost(widths) - target_cost)))
    best = _closest(careful) if matches(tolerance) else _closest(quick)
    if best not in careful:
        careful[best] = speed(best, careful=True)
    return Match(best, careful[best], len(quick), abs(careful[best] - 1) <= tolerance)


def _index_of_cost(ladder: Sequence[Widths], cost: Callable[[Widths], float], target: float) -> int:
    """Return the index of the entry whose cost is closest to ``target``."""
    above = bisect_left(ladder, target, key=cost)
    if above == 0:
        return 0
    if above == len(ladder):
        return len(ladder) - 1
    return above if cost(ladder[above]) - target < target - cost(ladder[above - 1]) else above - 1


def _closest(speeds: dict[Widths, float]) -> Widths:
    return min(speeds, key=lambda widths: abs(speeds[widths] - 1))
