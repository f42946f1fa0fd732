"""Errors that the tools print as one sentence; any module may import this one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ['CheckpointError', 'ConfigError', 'MissingCheckpointError', 'UserError',
           'translate_errors']


class UserError(Exception):
    """A mistake of the user, reported in one sentence; the tools print it without a traceback."""


class ConfigError(UserError, ValueError):
    """A config or constructor argument that can't work; names the value and the choices."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that can't be read, is not safe, or does not fit this model."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint that does not exist; callers of mmengine's loaders expect FileNotFoundError."""


@contextmanager
def translate_errors(*, pass_if: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn whatever a config's mistakes raise, in mmengine or below, into one sentence.

    Args:
        pass_if: Asked when an unknown error arrives; True lets it pass unchanged, because it is
            no longer the config's fault.

    Raises:
        UserError: In place of what was raised; one from a dataloader's worker loses its traceback.
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
            raise UserError('another process of this run has ended, which says why') from error
        if pass_if():
            raise
        raise ConfigError(f'the config can\'t be used as it is: {one_line(error)} '
                          '(EVIT_MM_TRACEBACK=1 shows where)') from error


def one_line(error: BaseException) -> str:
    """Format an error as 'Type: text' on one line."""
    # A KeyError shows its text in quotes; an OSError's first argument is a number.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return f'{type(error).__name__}: ' + ' '.join(text.split())


def _sentence_of_worker(error: UserError) -> str:
    """Find the sentence in the traceback that torch makes of a dataloader worker's error."""
    text = str(error)
    if not text.startswith('Caught '):
        return ''
    return text.rstrip().rpartition('\n')[2].partition(': ')[2]


def _lost_another_process(error: Exception) -> bool:
    import torch

    return torch.distributed.is_initialized() and any(text in str(error) for text in (
        'closed by peer', 'reset by peer', 'remote process exit'))  # gloo's, gloo's, NCCL's
