"""The search for widths ends where an artificial clock says that it should."""

import pytest

from evit_mm.analysis.matching import match_speed, neighbours, scaled_widths

BASE, UNITS = (128, 256, 384), (8, 8, 8)


def cost(widths):
    return sum(width ** 2 for width in widths)


class Clock:
    """Clock on which time is proportional to cost by default; records its measurements."""

    def __init__(self, reference, *, time=cost):
        self.reference, self.time = reference, time
        self.quick, self.careful = [], []

    def __call__(self, widths, *, careful):
        (self.careful if careful else self.quick).append(widths)
        return self.reference / self.time(widths)


def search(clock, *, ladder=None, **options):
    ladder = ladder or scaled_widths(BASE, UNITS)
    return match_speed(ladder, UNITS, clock, cost, cost(BASE), **options)


def test_scaled_widths_increase_in_small_steps():
    ladder = scaled_widths(BASE, UNITS, smallest=0.5, largest=2)
    assert ladder[0] == (64, 128, 192) and ladder[-1] == (256, 512, 768)
    assert BASE in ladder
    for lower, upper in zip(ladder, ladder[1:], strict=False):
        assert lower != upper
        assert all(0 <= b - a <= 8 and b % 8 == 0 for a, b in zip(lower, upper, strict=True))
    assert max(cost(upper) / cost(lower) for lower, upper in zip(ladder, ladder[1:], strict=False)
               ) < 1.1
    assert scaled_widths((16,), (8,), smallest=0.1, largest=1) == [(8,), (16,)]  # never 0


def test_neighbours_change_each_width_separately():
    assert set(neighbours((8, 16), (8, 8))) == {(8, 8), (8, 24), (16, 8), (16, 16), (16, 24)}


@pytest.mark.parametrize('factor', [0.1, 0.5, 0.97, 1, 1.3, 4])
def test_speed_is_matched(factor):
    """The model costs less or more than the reference at the widths where the search starts."""
    clock = Clock(cost(BASE) * factor)
    match = search(clock)
    assert match.within_tolerance and abs(match.speed - 1) <= 0.02
    assert match.speed == pytest.approx(clock.reference / cost(match.widths))
    assert match.tries == len(clock.quick) <= 14
    assert match.widths in clock.careful


def test_misleading_costs():
    """Time with a fixed part and one that is not proportional to multiply-adds."""
    match = search(Clock(cost(BASE), time=lambda widths: 0.3 * cost(BASE) + 500 * sum(widths)))
    assert match.within_tolerance and match.tries <= 18


def test_single_widths_vary_between_two_entries():
    ladder = [(64, 128, 192), (128, 256, 384), (256, 512, 768)]
    clock = Clock(cost(BASE) * 1.05)
    match = search(clock, ladder=ladder)
    assert match.within_tolerance and match.widths not in ladder


def test_quick_measurement_that_matches_by_accident_is_rejected():
    class Noisy(Clock):
        def __call__(self, widths, *, careful):
            super().__call__(widths, careful=careful)
            return 1.0 if len(self.quick) == 1 and not careful else self.reference / cost(widths)

    clock = Noisy(cost(BASE) * 2)
    match = search(clock)
    assert clock.quick[0] == clock.careful[0] != match.widths
    assert match.within_tolerance and abs(match.speed - 1) <= 0.02


def test_speed_near_the_tolerance_is_improved():
    # The entry of the ladder matches within 1.9 %; its neighbours are closer.
    clock = Clock(cost(BASE) * 1.019)
    match = search(clock, ladder=[(64, 128, 192), BASE, (256, 512, 768)])
    assert abs(match.speed - 1) < 0.01 and BASE in clock.careful
    assert len(clock.quick) <= 1 + 6


def test_best_widths_are_returned():
    """Also if others, measured carefully, are further away."""
    class Noisy(Clock):
        def __call__(self, widths, *, careful):
            super().__call__(widths, careful=careful)
            if careful:
                return {(8,): 1.05, (16,): 0.99}[widths]
            return {(8,): 1.01, (16,): 0.975}.get(widths, 0.5)

    match = match_speed([(8,), (16,)], (8,), Noisy(100), cost, 100)
    assert match.within_tolerance and match.widths == (16,)


@pytest.mark.parametrize('factor, end', [(1e-3, 0), (1e3, -1)])
def test_speed_that_cannot_be_matched_is_reported(factor, end):
    ladder = scaled_widths(BASE, UNITS)
    match = search(Clock(cost(BASE) * factor))
    assert not match.within_tolerance and match.widths == ladder[end]
    assert match.tries < 12


def test_widths_that_are_too_coarse_are_reported():
    match = match_speed([(8,), (16,)], (8,), Clock(150), cost, 100)
    assert not match.within_tolerance and match.widths in [(8,), (16,)]
    assert abs(match.speed - 1) == min(abs(150 / 64 - 1), abs(150 / 256 - 1))


def test_tries_are_limited():
    assert search(Clock(cost(BASE) * 0.3), tolerance=1e-9, max_tries=5).tries == 5
