"""The command app: a page for a model in the browser."""

import argparse

from evit_runtime.cli import APP, add_app_arguments, run_app

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = APP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: those of ``evit-run app``."""
    parser.add_argument('model', metavar='MODEL',
                        help='config file, name of a packaged config such as '
                        'retinanet_evit_m4_coco, or a file of evit-mm export')
    parser.add_argument('checkpoint', nargs='?', metavar='CHECKPOINT',
                        help='file, address or name of the weights, unless MODEL is an exported '
                        'file')
    add_app_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Open the page, until Ctrl-C.

    Raises:
        UserError: If the model can't be loaded, or the page can't be opened.
    """
    from .predict import load

    run_app(lambda: load(args.model, args.checkpoint, args.device), args)
