"""What the processes of a distributed run know of each other."""

import os
import socket
import sys
import threading
import time
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, is_distributed

from .resume_point import describe_latest

__all__ = ['PeerWatch', 'any_process', 'lost_processes']

_SECONDS = 1.0  # between two looks at the other processes
_GRACE = 3.0  # for the main thread to end by itself, with the error of its communication

_peers: list[tuple[int, str, int]] = []  # rank, host and process id of all processes


def any_process(flag: bool) -> bool:
    """Return whether a flag is set in any process of the run; all of them must call this."""
    if not is_distributed():
        return flag
    total = torch.tensor(float(flag))
    all_reduce(total, op='max')
    return bool(total)


def lost_processes(*, wait: bool = False) -> str:
    """Return which processes of the run have disappeared, as a sentence.

    Only those on this host can be looked at; empty if they are all there.

    Args:
        wait: Whether to wait for a moment, as a connection may break off before its process ends.
    """
    if wait and _peers:
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and not lost_processes():
            time.sleep(0.1)
    host = socket.gethostname()
    lost = [f'rank {rank} (process {process})' for rank, other, process in _peers
            if other == host and process != os.getpid() and not _is_alive(process)]
    if not lost:
        return ''
    return (f'{" and ".join(lost)} disappeared; the log of the launcher has '
            f'{"its exit status" if len(lost) == 1 else "their exit statuses"}')


def _is_alive(process: int) -> bool:
    """Return whether a process of this host runs; one that has ended may wait for its parent."""
    try:
        with open(f'/proc/{process}/stat', 'rb') as file:
            return file.read().rpartition(b')')[2].split()[0] not in (b'Z', b'X')
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        try:
            os.kill(process, 0)  # no /proc, or no such process
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return True


class PeerWatch:
    """Thread that ends this process when another process of the run on this host has died.

    A process that waits for a dead one in a communication of NCCL would wait for minutes.

    Args:
        work_dir: Of the run, for the message.
    """

    def __init__(self, work_dir: str) -> None:
        self._work_dir = work_dir
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start watching; all processes must call this."""
        if not is_distributed():
            return
        everyone: list[Any] = all_gather_object((get_rank(), socket.gethostname(), os.getpid()))
        _peers[:] = everyone
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching: from here on, another process may end because its work is done."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_SECONDS):
            lost = lost_processes()
            if lost and not self._over.wait(_GRACE):
                print(f'error: {lost}; {describe_latest(self._work_dir)}', file=sys.stderr,
                      flush=True)
                os._exit(2)
