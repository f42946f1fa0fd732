"""The command line: one module for each command, which parses flags and calls the API.

Each command's module has ``DESCRIPTION``, ``add_arguments(parser)`` and ``run(args)``, and imports
nothing slower than `argparse` until ``run`` is called. `main` implements the command ``evit-mm``
and the entry point of the scripts in tools/.
"""
