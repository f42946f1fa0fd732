"""The flags of tools/analyze.py, a file for each analysis."""

import argparse

from .channels import add_channels_parser
from .heads import add_heads_parser
from .proportion import add_proportion_parser
from .runtime import add_runtime_parser

DESCRIPTION = ('The three analyses of the EfficientViT paper (section 2), on any model: where time '
               'goes, which heads are alike, which channels matter.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the analyses as subcommands."""
    analyses = parser.add_subparsers(required=True, metavar='ANALYSIS')
    for add_parser in (add_runtime_parser, add_proportion_parser, add_heads_parser,
                       add_channels_parser):
        add_parser(analyses)


def run(args: argparse.Namespace) -> None:
    """Run the chosen analysis."""
    args.action(args)
