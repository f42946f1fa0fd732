"""Turns are taken, order and sums are right; by a clock of our own, as no test measures time."""

from collections import Counter

import torch

from evit_mm.benchmark.timing import Stopwatch, quartiles, run, take_turns
from evit_mm.errors import UserError


class FakeStopwatch:
    """Its time stands still but for what the work says that it takes."""

    def __init__(self):
        self.now = 0.0

    def start(self):
        self.marks = [self.now]

    def mark(self):
        self.marks.append(self.now)

    def read(self):
        return [second - first for first, second in zip(self.marks, self.marks[1:], strict=False)]


def work_of(clock, log, name, *durations):
    def step(milliseconds):
        def take(given):
            clock.now += milliseconds
            log.append(name)
            return given + 1
        return take
    return {f'step {i}': step(milliseconds) for i, milliseconds in enumerate(durations)}


def test_rounds_are_complete_shuffled_and_counted():
    clock, log = FakeStopwatch(), []
    works = {name: work_of(clock, log, name, spent) for name, spent in
             {'a': 1, 'b': 2, 'c': 4}.items()}
    turns = take_turns(works, dict.fromkeys(works, 0), clock, repeats=20, warm_up=3)
    rounds = [tuple(log[i:i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 23 and all(Counter(one) == Counter('abc') for one in rounds)
    assert len(set(rounds)) > 3  # another order from round to round
    assert {name: turn.totals for name, turn in turns.items()} \
        == {'a': [1] * 20, 'b': [2] * 20, 'c': [4] * 20}


def test_the_order_follows_from_the_seed():
    def order(seed):
        clock, log = FakeStopwatch(), []
        works = {name: work_of(clock, log, name, 1) for name in 'abcd'}
        take_turns(works, dict.fromkeys(works, 0), clock, repeats=5, seed=seed)
        return log

    assert order(0) == order(0) != order(1)


def test_steps_are_timed_apart_and_handed_on():
    clock, log = FakeStopwatch(), []
    work = work_of(clock, log, 'a', 3, 5)
    turns = take_turns({'a': work}, {'a': 10}, clock, repeats=2, warm_up=0)
    assert turns['a'].steps == {'step 0': [3, 3], 'step 1': [5, 5]}
    assert turns['a'].totals == [8, 8] and turns['a'].milliseconds == 8
    assert run(work, 10) == 12


def test_a_failure_leaves_the_others_alone():
    clock, log = FakeStopwatch(), []

    def breaks(given):
        if len(log) > 4:
            raise ValueError('broken\nfor good')
        return given

    def forbidden(_):
        raise UserError('one sentence')

    turns = take_turns({'a': work_of(clock, log, 'a', 1), 'b': {'only': breaks},
                        'c': {'only': forbidden}}, {'a': 0, 'b': 0, 'c': 0}, clock, repeats=8)
    assert turns['a'].failure is None and len(turns['a'].totals) == 8
    assert turns['b'].failure == 'ValueError: broken for good' and len(turns['b'].totals) < 8
    assert turns['c'].failure == 'one sentence'


def test_quartiles():
    assert quartiles([1, 2, 3, 4, 5]) == (2, 4)
    assert quartiles([7]) == (7, 7)


def test_the_stopwatch_reads_what_lies_between_marks(monkeypatch):
    times = iter([1.0, 1.25, 1.5])
    monkeypatch.setattr('evit_mm.benchmark.timing.time.perf_counter', lambda: next(times))
    stopwatch = Stopwatch(torch.device('cpu'))
    stopwatch.start()
    stopwatch.mark()
    stopwatch.mark()
    assert stopwatch.read() == [250, 250]
