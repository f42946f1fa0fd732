"""Time several models that take turns on one machine.

A busy moment of the machine then hits all of them, so that ratios stay right while milliseconds
drift. The order is shuffled in each round: otherwise the same model would always run in the warm
caches that the same other one leaves behind.
"""

import math
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

__all__ = ['OUT_OF_MEMORY', 'OUT_OF_TIME', 'Budget', 'Steps', 'Stopwatch', 'Timings',
           'capture_cuda_graph', 'failure_reason', 'quartiles', 'raise_user_errors', 'run_steps',
           'take_turns']

OUT_OF_MEMORY = 'out of memory'
OUT_OF_TIME = 'no time left'

_FEWEST_ROUNDS = 3

Steps = Mapping[str, Callable[[Any], Any]]
"""Named functions that run in order; each takes what the one before it returned."""


@dataclass
class Timings:
    """Times of the steps of one model.

    Attributes:
        steps: Milliseconds by step, one number per timed round.
        failure: Why the steps failed, if they did; ``steps`` has the rounds before that.
    """

    steps: dict[str, list[float]] = field(default_factory=dict)
    failure: str | None = None

    @property
    def totals(self) -> list[float]:
        """Milliseconds of all steps together, one number per timed round."""
        return [sum(times) for times in zip(*self.steps.values(), strict=True)]

    @property
    def milliseconds(self) -> float:
        """Median of the totals; NaN if there are none."""
        return median(self.totals) if self.totals else float('nan')


class Budget:
    """Time that may be spent, from the creation of this object on.

    Args:
        seconds: The time; without a limit by default.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left; negative if more than the budget has been spent."""
        return self._end - time.monotonic()


class Stopwatch:
    """Times between marks, in milliseconds.

    On CUDA the marks are events in the stream, which are read after the last one has passed: steps
    run back to back, and the time that a kernel waits for its launch counts.

    Args:
        device: The device to time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def start(self) -> None:
        """Wait until the device is idle, and set the first mark."""
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
        """Return the times between consecutive marks."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
            return [first.elapsed_time(second) for first, second in pairs]
        return [(second - first) * 1e3 for first, second in pairs]


def run_steps(steps: Steps, inputs: Any) -> Any:
    """Run all steps, and return what the last one returned."""
    for step in steps.values():
        inputs = step(inputs)
    return inputs


def take_turns(models: Mapping[str, Steps], inputs: Mapping[str, Any], stopwatch: Any, *,
               repeats: int, warm_up: int = 3, seconds: float = math.inf, seed: int = 0,
               progress: bool = False, title: str = '') -> dict[str, Timings]:
    """Time the steps of several models, which take turns.

    Args:
        models: The steps of each model, by name.
        inputs: The input of each model's first step, by name.
        stopwatch: A `Stopwatch`, or an object with its methods.
        repeats: Timed rounds; each runs every model once.
        warm_up: Rounds before those, not timed.
        seconds: Time after which no further round begins, once three have been timed.
        seed: Seed of the order within the rounds.
        progress: Whether to show a progress bar on stderr.
        title: Title of the progress bar.

    Returns:
        dict[str, Timings]: By name. A model that fails is left out of the rounds that follow.
    """
    order = random.Random(seed)
    timings = {name: Timings({step: [] for step in steps}) for name, steps in models.items()}
    budget = Budget(seconds)
    with tqdm(total=len(models) * (warm_up + repeats), desc=title, disable=not progress,
              leave=False) as bar:
        for round_ in range(warm_up + repeats):
            if budget.left < 0 and round_ >= warm_up + _FEWEST_ROUNDS:
                break
            names = list(models)
            order.shuffle(names)
            for name in names:
                bar.update()
                if timings[name].failure is not None:
                    continue
                try:
                    times = _time_once(models[name], inputs[name], stopwatch)
                except Exception as error:  # the other models go on
                    timings[name].failure = failure_reason(error)
                    continue
                if round_ >= warm_up:
                    for step, milliseconds in times.items():
                        timings[name].steps[step].append(milliseconds)
    return timings


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method='inclusive')
    return first, third


def failure_reason(error: BaseException) -> str:
    """Format an error as one line for a table."""
    text = ' '.join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
            words in text for words in ('not enough memory', 'can\'t allocate memory')):
        return OUT_OF_MEMORY
    return f'{type(error).__name__}: {text[:200]}'


@contextmanager
def raise_user_errors(failure: str, device: torch.device) -> Iterator[None]:
    """Turn every error inside the block into a `UserError`.

    Models of other packages fail in many ways at image sizes and batch sizes that they can't take.

    Args:
        failure: The sentence that the message begins with, such as ``'m0 can't run on 3x5'``.
        device: The device that the block computes on.

    Raises:
        UserError: In place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = failure_reason(error)
        if reason == OUT_OF_MEMORY:
            reason = f'it needs more memory than {machine.describe(device)} has'
        raise UserError(f'{failure}: {reason}') from error


def capture_cuda_graph(action: Callable[[], Any], device: torch.device
                       ) -> tuple[Callable[[], None], Any]:
    """Record ``action`` as a CUDA graph.

    Returns:
        tuple: A function that replays it, and the outputs, which each replay overwrites.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # cuDNN chooses kernels in the first calls, which can't be captured
            action()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = action()
    return graph.replay, outputs


def _time_once(steps: Steps, inputs: Any, stopwatch: Any) -> dict[str, float]:
    stopwatch.start()
    for step in steps.values():
        inputs = step(inputs)
        stopwatch.mark()
    return dict(zip(steps, stopwatch.read(), strict=True))
