"""A runner that writes its long reports to the log file alone."""

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

__all__ = ['ConciseRunner', 'show_everything']

_MOST_LINES = 5  # of a message


class ConciseRunner(Runner):
    """mmengine's runner, whose terminal stays readable while it starts.

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


def show_everything(logger: logging.Logger) -> None:
    """Let the terminal print all messages from here on."""
    for handler in _terminal_handlers(logger):
        handler.removeFilter(_is_concise)


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
