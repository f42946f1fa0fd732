"""How long work takes, when several kinds of it take turns on one machine.

A busy moment of the machine then meets all of them, and their ratios stay right where each
one's milliseconds drift. The order is drawn anew for every round, so that none always runs in the
warm caches that the same other one left.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from tqdm import tqdm

from ..errors import UserError
from . import machine

__all__ = ['Stopwatch', 'Turns', 'Work', 'must_work', 'quartiles', 'reason', 'run',
           'take_turns']

OUT_OF_MEMORY = 'out of memory'

Work = Mapping[str, Callable[[Any], Any]]
"""Named steps, one after the other; each is given what the one before it returned."""


@dataclass
class Turns:
    """What one kind of work took.

    Attributes:
        steps: Milliseconds of each step, one number per round that counts.
        failure: Why the work could not be done; then the rounds before that are in ``steps``.
    """

    steps: dict[str, list[float]] = field(default_factory=dict)
    failure: str | None = None

    @property
    def totals(self) -> list[float]:
        """Milliseconds of all steps together, one number per round that counts."""
        return [sum(times) for times in zip(*self.steps.values(), strict=True)]

    @property
    def milliseconds(self) -> float:
        """Median of the totals; NaN where there are none."""
        return median(self.totals) if self.totals else float('nan')


class Stopwatch:
    """Times between marks, in milliseconds.

    On CUDA the marks are events in the stream, read after the last one has passed: no step waits
    for the one before it to be noticed by the CPU, and what a kernel waits for its launch counts.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def start(self) -> None:
        """Wait for what the device still does, and set the first mark."""
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        self._marks = []
        self.mark()

    def mark(self) -> None:
        """Set another mark."""
        if self._device.type == 'cuda':
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def read(self) -> list[float]:
        """The times between neighbouring marks."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
            return [first.elapsed_time(second) for first, second in pairs]
        return [(second - first) * 1e3 for first, second in pairs]


def run(work: Work, given: Any) -> Any:
    """Do all steps; returns what the last one returned."""
    for step in work.values():
        given = step(given)
    return given


def take_turns(works: Mapping[str, Work], given: Mapping[str, Any], stopwatch: Any, *, repeats: int,
               warm_up: int = 3, seed: int = 0, progress: bool = False, title: str = ''
               ) -> dict[str, Turns]:
    """Time several kinds of work, which take turns.

    Args:
        works: The steps of each, by name.
        given: What the first step of each is given, by the same names.
        stopwatch: A `Stopwatch`, or what looks like one.
        repeats: Rounds that count. In every round each work is done once.
        warm_up: Rounds before those.
        seed: Of the order within the rounds.
        progress: Show a progress bar on stderr.
        title: What the progress bar says.

    Returns:
        dict[str, Turns]: By name. Work that fails is left out of the rounds that follow.
    """
    order = random.Random(seed)
    turns = {name: Turns({step: [] for step in work}) for name, work in works.items()}
    with tqdm(total=len(works) * (warm_up + repeats), desc=title, disable=not progress,
              leave=False) as bar:
        for round_ in range(warm_up + repeats):
            names = list(works)
            order.shuffle(names)
            for name in names:
                bar.update()
                if turns[name].failure is not None:
                    continue
                try:
                    spent = _timed(works[name], given[name], stopwatch)
                except Exception as error:  # one row's must not cost the others theirs
                    turns[name].failure = reason(error)
                    continue
                if round_ >= warm_up:
                    for step, milliseconds in spent.items():
                        turns[name].steps[step].append(milliseconds)
    return turns


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method='inclusive')
    return first, third


def reason(error: BaseException) -> str:
    """Why work failed, in one line for a table."""
    text = ' '.join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
            words in text for words in ('not enough memory', 'can\'t allocate memory')):
        return OUT_OF_MEMORY
    return f'{type(error).__name__}: {text[:200]}'


@contextmanager
def must_work(failure: str, device: torch.device) -> Iterator[None]:
    """Turn every error within into a sentence.

    Models are others', and so are their ways to fail at sizes and batches that they can't take.

    Args:
        failure: What can't be done, in words.
        device: Where it is done.

    Raises:
        UserError: If there is an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = reason(error)
        if why == OUT_OF_MEMORY:
            why = f'it needs more memory than {machine.describe(device)} has'
        raise UserError(f'{failure}: {why}') from error


def _timed(work: Work, given: Any, stopwatch: Any) -> dict[str, float]:
    stopwatch.start()
    for step in work.values():
        given = step(given)
        stopwatch.mark()
    return dict(zip(work, stopwatch.read(), strict=True))
