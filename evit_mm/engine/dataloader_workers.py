"""What the worker processes of a dataloader tell the main process, and how they start."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, get_worker_info

from ..data.loading import take_skipped_images
from .random_states import capture_random_states, restore_random_states

__all__ = ['ReportedBatch', 'WorkerStart', 'report_batches']


class ReportedBatch(NamedTuple):
    """A batch, and what the process that loaded it reports.

    Attributes:
        data: What the dataloader's own collate function has made.
        worker: Number of the worker; -1 if the main process loads.
        states: Random states of the worker after this batch; empty in the main process.
        skipped: Images that could not be loaded and were replaced: a message for each.
    """

    data: Any
    worker: int
    states: dict[str, Any]
    skipped: list[str]


def report_batches(loader: DataLoader) -> 'WorkerStart | None':
    """Let a dataloader yield each batch as a `ReportedBatch`.

    Args:
        loader: Changed in place, before its workers are started.

    Returns:
        WorkerStart: How its workers start; None for a subclass of `DataLoader`, which is left as
        it is.
    """
    if type(loader) is not DataLoader:
        return None
    if not isinstance(loader.collate_fn, _Report):
        loader.collate_fn = _Report(loader.collate_fn)
        loader.worker_init_fn = WorkerStart(loader.worker_init_fn)
    start: Any = loader.worker_init_fn
    return start


class _Report:
    """Collate function that wraps the result of another one in a `ReportedBatch`."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> ReportedBatch:
        data = self.collate(samples)
        worker = get_worker_info()
        if worker is None:
            return ReportedBatch(data, -1, {}, take_skipped_images())
        return ReportedBatch(data, worker.id, capture_random_states(cuda=False),
                             take_skipped_images())


class WorkerStart:
    """Function that each worker calls when it starts.

    Attributes:
        init: The dataloader's own function, if any.
        resumed: For each worker, the number and random states of the one that it continues; empty
            states leave those that ``init`` sets. None starts workers as usual.
    """

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self.init = init
        self.resumed: Sequence[tuple[int, dict[str, Any]]] | None = None

    def __call__(self, worker: int) -> None:
        _leave_signals_to_the_main_process()
        number, states = self.resumed[worker] if self.resumed else (worker, {})
        if self.init is not None:
            self.init(number)
        if states:
            restore_random_states(states)


def _leave_signals_to_the_main_process() -> None:
    """Survive Ctrl-C and a SIGTERM to the whole process group.

    The main process needs this worker until it has saved a checkpoint. It still ends its workers by
    SIGTERM, which is told apart by its sender.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
