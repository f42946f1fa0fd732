"""Errors that the tools print as one sentence without a traceback; any module may import them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from evit_runtime.errors import UserError, is_full_disk

__all__ = ['CheckpointError', 'ConfigError', 'Interrupted', 'LostProcessError',
           'MissingCheckpointError', 'Terminated', 'UserError', 'is_full_disk', 'one_line',
           'translate_errors']


class ConfigError(UserError, ValueError):
    """Config or constructor argument that can't work; the message names the value and choices."""


class CheckpointError(UserError, RuntimeError):
    """Checkpoint that can't be read, is not safe, or does not fit the model."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint that does not exist; callers of mmengine's loaders expect FileNotFoundError."""


class LostProcessError(UserError):
    """Another process of a distributed run that can't be reached any more."""


class Interrupted(KeyboardInterrupt):
    """A training that Ctrl-C has ended; the message says what was saved."""


class Terminated(SystemExit):
    """A training that SIGTERM has ended; the message says what was saved."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 143  # 128 + SIGTERM, as shells report it


@contextmanager
def translate_errors(*, pass_if: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn any error that a mistake in a config raises, in mmengine or below, into a `UserError`.

    Args:
        pass_if: Called for an error of another type; if it returns True, the error is not due to
            the config, and passes unchanged.

    Raises:
        UserError: In place of the error. One from a dataloader's worker loses the worker's
            traceback.
    """
    try:
        yield
    except UserError as error:
        sentence = _sentence_of_worker(error)
        if sentence:
            raise type(error)(sentence) from error
        raise
    except Exception as error:
        if _lost_another_process(error):
            raise LostProcessError(
                'the connection to another process of this run broke off, as it has failed or was '
                'killed: its own message, or the log of the launcher, says why') from error
        if is_full_disk(error):
            file = getattr(error, 'filename', None)
            raise UserError(f'can\'t write {file or "a file"}: {error.strerror}; free some space '
                            'and run it again: what was there before is kept') from error
        if pass_if():
            raise
        raise ConfigError(f'the config can\'t be used as it is: {one_line(error)} '
                          '(EVIT_MM_TRACEBACK=1 shows where)') from error


def one_line(error: BaseException) -> str:
    """Return an error as 'Type: text' on one line."""
    # A KeyError shows its text in quotes; an OSError's first argument is a number.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return f'{type(error).__name__}: ' + ' '.join(text.split())


def _sentence_of_worker(error: UserError) -> str:
    """Return the message inside the traceback that torch makes of a dataloader worker's error."""
    text = str(error)
    if not text.startswith('Caught '):
        return ''
    return text.rstrip().rpartition('\n')[2].partition(': ')[2]


def _lost_another_process(error: Exception) -> bool:
    import torch

    return torch.distributed.is_initialized() and any(text in str(error) for text in (
        'closed by peer', 'reset by peer', 'remote process exit'))  # gloo's, gloo's, NCCL's
