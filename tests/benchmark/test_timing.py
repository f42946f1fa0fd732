"""Models take turns, in the right order; with a fake clock, as no test measures time."""

from collections import Counter

import torch

from evit_mm.benchmark.timing import Stopwatch, quartiles, run_steps, take_turns
from evit_mm.errors import UserError


class FakeStopwatch:
    """A clock that only the steps under test advance."""

    def __init__(self):
        self.now = 0.0

    def start(self):
        self.marks = [self.now]

    def mark(self):
        self.marks.append(self.now)

    def read(self):
        return [second - first for first, second in zip(self.marks, self.marks[1:], strict=False)]


def fake_steps(clock, log, name, *durations):
    def step(milliseconds):
        def advance(x):
            clock.now += milliseconds
            log.append(name)
            return x + 1
        return advance
    return {f'step {i}': step(milliseconds) for i, milliseconds in enumerate(durations)}


def test_rounds_are_complete_shuffled_and_counted():
    clock, log = FakeStopwatch(), []
    models = {name: fake_steps(clock, log, name, duration) for name, duration in
              {'a': 1, 'b': 2, 'c': 4}.items()}
    timings = take_turns(models, dict.fromkeys(models, 0), clock, repeats=20, warm_up=3)
    rounds = [tuple(log[i:i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 23 and all(Counter(one) == Counter('abc') for one in rounds)
    assert len(set(rounds)) > 3  # another order from round to round
    assert {name: timing.totals for name, timing in timings.items()} \
        == {'a': [1] * 20, 'b': [2] * 20, 'c': [4] * 20}


def test_the_seed_sets_the_order():
    def order(seed):
        clock, log = FakeStopwatch(), []
        models = {name: fake_steps(clock, log, name, 1) for name in 'abcd'}
        take_turns(models, dict.fromkeys(models, 0), clock, repeats=5, seed=seed)
        return log

    assert order(0) == order(0) != order(1)


def test_steps_are_timed_separately_and_pass_on_their_results():
    clock, log = FakeStopwatch(), []
    steps = fake_steps(clock, log, 'a', 3, 5)
    timings = take_turns({'a': steps}, {'a': 10}, clock, repeats=2, warm_up=0)
    assert timings['a'].steps == {'step 0': [3, 3], 'step 1': [5, 5]}
    assert timings['a'].totals == [8, 8] and timings['a'].milliseconds == 8
    assert run_steps(steps, 10) == 12


def test_other_models_go_on_after_a_failure():
    clock, log = FakeStopwatch(), []

    def breaks(x):
        if len(log) > 4:
            raise ValueError('broken\nfor good')
        return x

    def forbidden(_):
        raise UserError('one sentence')

    timings = take_turns({'a': fake_steps(clock, log, 'a', 1), 'b': {'only': breaks},
                          'c': {'only': forbidden}}, {'a': 0, 'b': 0, 'c': 0}, clock, repeats=8)
    assert timings['a'].failure is None and len(timings['a'].totals) == 8
    assert timings['b'].failure == 'ValueError: broken for good' and len(timings['b'].totals) < 8
    assert timings['c'].failure == 'one sentence'


def test_quartiles():
    assert quartiles([1, 2, 3, 4, 5]) == (2, 4)
    assert quartiles([7]) == (7, 7)


def test_the_stopwatch_returns_the_times_between_marks(monkeypatch):
    times = iter([1.0, 1.25, 1.5])
    monkeypatch.setattr('evit_mm.benchmark.timing.time.perf_counter', lambda: next(times))
    stopwatch = Stopwatch(torch.device('cpu'))
    stopwatch.start()
    stopwatch.mark()
    stopwatch.mark()
    assert stopwatch.read() == [250, 250]


def test_rounds_end_with_the_time():
    """Three rounds are timed in any case, as the first ones are slow."""
    clock, log = FakeStopwatch(), []
    models = {'a': fake_steps(clock, log, 'a', 1)}
    timings = take_turns(models, {'a': 0}, clock, repeats=20, warm_up=2, seconds=0)
    assert timings['a'].totals == [1] * 3 and len(log) == 5
