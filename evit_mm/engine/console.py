"""A runner that prints a short start, and does not mix with earlier runs of its process."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

__all__ = ['ConciseRunner', 'TestRunner', 'hide_iterations', 'show_everything']

_MOST_LINES = 5  # of a message
# What mmengine logs of single iterations; the line after a validation or test has no time left.
_ITERATION = re.compile(r'(Epoch|Iter)\((train|val|test)\) .*\beta: |Exp name: ')


class ConciseRunner(Runner):
    """mmengine's runner with a readable terminal while it starts.

    mmengine logs the environment, the whole config, all hooks by stage and the optimizer's options
    of each parameter: several hundred lines. Here these go to the log file only, until
    `show_everything` is called.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as mmengine does, and filter what its terminal handlers print."""
        logger = super().build_logger(*args, **kwargs)
        for handler in _terminal_handlers(logger):
            handler.addFilter(_is_concise)
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        """Build a visualizer of this run.

        mmengine keeps visualizers by name for the life of the process, and configs give them all
        the same name: a second run would write into the first one's work dir.
        """
        if isinstance(visualizer, Mapping):
            visualizer = dict(visualizer, name=self.experiment_name)
        return super().build_visualizer(visualizer)


class TestRunner(ConciseRunner):
    """A runner for tests, which doesn't replace the config that a training left in the work dir."""

    __test__ = False  # not a test of pytest's, in spite of its name

    @master_only
    def dump_config(self) -> None:
        """Write the config beside the log of the test."""
        self.cfg.dump(str(Path(self.log_dir, Path(self.cfg.filename or 'config.py').name)))


def show_everything(logger: logging.Logger) -> None:
    """Let the terminal print all messages from here on."""
    for handler in _terminal_handlers(logger):
        handler.removeFilter(_is_concise)


@contextmanager
def hide_iterations(logger: logging.Logger) -> Iterator[None]:
    """Leave the lines of single iterations to the log file, as a progress bar shows them."""
    handlers = _terminal_handlers(logger)
    for handler in handlers:
        handler.addFilter(_is_no_iteration)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_no_iteration)


def _is_no_iteration(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not _ITERATION.match(record.getMessage())


def _is_concise(record: logging.LogRecord) -> bool:
    """Return whether a message belongs on the terminal while a run starts."""
    if record.levelno > logging.INFO:
        return True
    text = record.getMessage()
    return text.count('\n') < _MOST_LINES and not text.startswith('paramwise_options -- ')


def _terminal_handlers(logger: logging.Logger) -> list[logging.Handler]:
    # A FileHandler is a StreamHandler too.
    return [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)
            and not isinstance(handler, logging.FileHandler)]
