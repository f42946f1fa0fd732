"""The flags of tools/analyze.py, a file for each analysis."""

import argparse

from .channels import add_channels_parser
from .heads import add_heads_parser
from .proportion import add_proportion_parser
from .runtime import add_runtime_parser

__all__ = ['analyze', 'analyze_parser']


def analyze_parser() -> argparse.ArgumentParser:
    """The analyses that tools/analyze.py does, and the flags of each."""
    parser = argparse.ArgumentParser(
        prog='analyze.py', description='The three analyses of the EfficientViT paper (section 2), '
        'on any model: where time goes, which heads are alike, which channels matter.')
    analyses = parser.add_subparsers(required=True, metavar='ANALYSIS')
    for add_parser in (add_runtime_parser, add_proportion_parser, add_heads_parser,
                       add_channels_parser):
        add_parser(analyses)
    return parser


def analyze(options: argparse.Namespace) -> None:
    """Do the analysis that the command line names.

    Args:
        options: What `analyze_parser` parses; each analysis' parser sets ``action``.
    """
    options.action(options)
