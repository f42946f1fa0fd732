"""Fast toy trainings, and processes of their own for faults that end one."""

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import mmengine.config.config
import mmengine.runner.loops
import mmengine.runner.runner
import pytest
import torch
from small_runs import fresh_registries


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many faults the tests have injected, and how many of them were survived.

    Tests count them with pytest's ``record_property``; those of a test that fails count as not
    survived.
    """
    injected: Counter[str] = Counter()
    survived: Counter[str] = Counter()
    for outcome in ('passed', 'failed'):
        for report in terminalreporter.stats.get(outcome, []):
            for kind, number in report.user_properties if report.when == 'call' else []:
                injected[kind] += number
                survived[kind] += number * (outcome == 'passed')
    if injected:
        terminalreporter.section('faults')
        for row in (['fault', 'injected', 'survived'], ['---', '---:', '---:'],
                    *([kind, injected[kind], survived[kind]] for kind in sorted(injected))):
            terminalreporter.write_line('| ' + ' | '.join(map(str, row)) + ' |')


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out what takes most of a toy run, and waiting for the disk; see tests/engine."""
    monkeypatch.setattr(mmengine.runner.loops, 'time', SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(mmengine.runner.runner, 'collect_env', dict)
    monkeypatch.setattr(mmengine.config.config, 'FormatCode', lambda text, **_: (text, True),
                        raising=False)  # OneDL's mmengine does not format
    monkeypatch.setattr(os, 'fsync', lambda _: None)
    # OpenMP's threads are not in a process that was forked, which would wait for them forever.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fresh_registries():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """Start a function in a forked process, and return its process id.

    A fork starts at once, where a new interpreter would import torch for seconds. What has started
    autograd's threads, such as the compilation of a model, can't be forked any more: `make test`
    runs these tests in a process of their own.
    """
    if not _can_be_forked():
        pytest.skip('an earlier test has started threads of autograd: run tests/faults on its own')

    def start(function: Callable[[], object]) -> int:
        child = os.fork()
        if child:
            return child
        status = 70
        try:
            function()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return start


def _can_be_forked() -> bool:
    """Return whether a fork of this process can compute gradients."""
    child = os.fork()
    if not child:
        try:
            torch.ones(1, requires_grad=True).sum().backward()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
