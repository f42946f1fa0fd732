"""The command `analyze`, with one module per analysis."""

import argparse

from . import channels, heads, proportion, runtime

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('The analyses of the EfficientViT paper (section 2), for any model: where the time '
               'goes, which heads are alike, which channels matter, what attention costs.')

_ANALYSES = {
    'runtime': (runtime, 'share of the run time by kind of operation'),
    'proportion': (proportion, 'memory-bound time against the share of attention layers'),
    'heads': (heads, 'similarity of the attention maps of a block\'s heads'),
    'channels': (channels, 'importance of channels, and their removal to a budget'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subparser for each analysis."""
    subparsers = parser.add_subparsers(dest='analysis', required=True, metavar='ANALYSIS')
    for name, (module, summary) in _ANALYSES.items():
        module.add_arguments(subparsers.add_parser(name, help=summary,
                                                   description=module.DESCRIPTION))


def run(args: argparse.Namespace) -> None:
    """Run the analysis that the command line selects."""
    module, _ = _ANALYSES[args.analysis]
    module.run(args)
