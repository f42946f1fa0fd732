"""What the tools' command lines have in common, and how a tool ends."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import DictAction

from ..errors import UserError

__all__ = ['ConfigOptions', 'run_tool']


class ConfigOptions(DictAction):
    """mmengine's KEY=VALUE pairs, with a sentence instead of a traceback for a malformed one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'{option_string} takes KEY=VALUE pairs, but got {" ".join(wrong)}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            parser.error(f'{option_string} {" ".join(values)}: {error}')


def run_tool(parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], Any],
             arguments: Sequence[str] | None = None) -> int:
    """Parse, act, and turn a user's mistake into one sentence.

    Set EVIT_MM_TRACEBACK=1 to see where a sentence came from.

    Returns:
        int: The exit status: 0, 2 after a user's mistake, 130 after an interruption.
    """
    # Said by setuptools about mmengine, at every import.
    warnings.filterwarnings('ignore', message='.*pkg_resources is deprecated')
    options = parser.parse_args(arguments)
    if getattr(options, 'local_rank', None) is not None:
        os.environ.setdefault('LOCAL_RANK', str(options.local_rank))
    try:
        action(options)
    except UserError as error:
        if os.environ.get('EVIT_MM_TRACEBACK'):
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped; what was saved is kept', file=sys.stderr)
        return 130
    if getattr(options, 'launcher', 'none') != 'none':
        from ..engine.launch import work_is_done  # not for tools that need no torch

        work_is_done()
    return 0
