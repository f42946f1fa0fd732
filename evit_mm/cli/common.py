"""Flags that several commands share."""

import argparse
from typing import Any

__all__ = ['ConfigOptions']


class ConfigOptions(argparse.Action):
    """KEY=VALUE pairs, parsed as mmengine's ``DictAction`` does and gathered in one dict.

    Malformed pairs are reported in a sentence. mmengine, whose import takes seconds, is imported
    only if the flag is used.
    """

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        malformed = [value for value in values if '=' not in value]
        if malformed:
            parser.error(f'{option_string} takes KEY=VALUE pairs, but got {" ".join(malformed)}')
        from mmengine.config import DictAction

        parse = DictAction(self.option_strings, self.dest, self.nargs)
        try:
            parse(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            parser.error(f'{option_string} {" ".join(values)}: {error}')
