"""The flags of tools/convert_weights.py."""

import argparse

DESCRIPTION = (
    'Write weights in another layout, or look into a file of them. Training and '
                    'testing need no conversion: they take every layout as it is.')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of tools/convert_weights.py."""
    parser.add_argument('src', nargs='?', metavar='SRC',
                        help='a file of any known layout, an address, or a published name')
    parser.add_argument('dst', nargs='?', metavar='DST',
                        help='the file to write; .pth and .pt give a file of torch.save, all '
                             'else a .safetensors file')
    parser.add_argument('--to', choices=('evit-mm', 'timm', 'microsoft'), default='evit-mm',
                        help='the layout to write (default: evit-mm)')
    parser.add_argument('--inspect', action='store_true',
                        help='print what SRC holds; builds no model and runs no code of it')
    parser.add_argument('--list', action='store_true', help='print the published weights')
    parser.add_argument('--overwrite', action='store_true', help='replace DST if it exists')
    parser.add_argument('--trust', action='store_true',
                        help='read SRC even if that runs code from it: only for files of people '
                             'whose programs you would run')


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..checkpoint.convert import convert

    convert(args)
