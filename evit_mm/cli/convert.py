"""The command `evit-mm convert`: inspect weight files, or write them in another layout."""

import argparse

__all__ = ['DESCRIPTION', 'add_arguments', 'run']

DESCRIPTION = ('Write weights in another key layout, or inspect a weight file. Training and '
               'testing need no conversion: they accept every layout.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument('src', nargs='?', metavar='SRC',
                        help='a file of any known layout, an address, or a published name')
    parser.add_argument('dst', nargs='?', metavar='DST',
                        help='the file to write: .safetensors, .pth or .pt; .safetensors is '
                             'appended to a name without a suffix')
    parser.add_argument('--to', choices=('evit-mm', 'timm', 'microsoft'), default='evit-mm',
                        help='the layout to write (default: evit-mm)')
    parser.add_argument('--inspect', action='store_true',
                        help='print what SRC contains; builds no model and runs no code from it')
    parser.add_argument('--list', action='store_true', help='print the published weights')
    parser.add_argument('--overwrite', action='store_true', help='replace DST if it exists')
    parser.add_argument('--trust', action='store_true',
                        help='load SRC even if that runs code from it: only for files of people '
                             'whose programs you would run')


def run(args: argparse.Namespace) -> None:
    """Convert or inspect a file, or list the published weights, and print the result.

    Raises:
        UserError: If an argument is missing, or a file can't be read, converted or written.
    """
    import sys

    from ..checkpoint import markdown_table
    from ..checkpoint.convert import convert_checkpoint, inspect_checkpoint
    from ..errors import UserError

    if args.list:
        print(markdown_table())
        return
    if not args.src:
        raise UserError('SRC is missing: a file, an address, or a name that --list prints')
    if not args.inspect and not args.dst:
        raise UserError('DST is missing: the file to write; or pass --inspect to inspect SRC')
    if args.trust:
        print(f'warning: --trust runs any code that {args.src} contains; use it only for files of '
              'people whose programs you would run', file=sys.stderr)
    if args.inspect:
        print(inspect_checkpoint(args.src, trust=args.trust))
    else:
        print(convert_checkpoint(args.src, args.dst, to=args.to, overwrite=args.overwrite,
                                 trust=args.trust))
