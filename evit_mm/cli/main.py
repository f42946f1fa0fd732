"""The command ``evit-mm``, and the entry point of the scripts in tools/."""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from evit_runtime.cli import exit_status

from ..errors import Interrupted, Terminated
from ..version import __version__

__all__ = ['COMMANDS', 'main', 'run_tool']


class Command(NamedTuple):
    """A command: the module that implements it, its script in tools/, and its summary."""

    module: str
    script: str
    summary: str


COMMANDS = {
    'train': Command('train', 'train.py', 'train a detector or segmentor'),
    'test': Command('test', 'test.py', 'evaluate a checkpoint'),
    'predict': Command('predict', 'predict.py', 'predict pictures and videos'),
    'app': Command('app', 'app.py', 'open a page for a model in the browser'),
    'export': Command('export', 'export.py', 'write a trained model to ONNX or OpenVINO'),
    'benchmark': Command('benchmark', 'benchmark.py', 'measure time, memory and multiply-adds'),
    'analyze': Command('analyze', 'analyze.py', 'run the analyses of the EfficientViT paper'),
    'convert': Command('convert', 'convert_weights.py', 'convert, inspect or list weights'),
    'data': Command('data', 'prepare_data.py', 'prepare a dataset'),
    'run': Command('run_script', 'run.py', 'run a script of MMDetection or MMSegmentation'),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``evit-mm``.

    Args:
        argv: The arguments after the program's name; those of the process by default.

    Returns:
        The exit status; see `run_tool`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in argv if not argument.startswith('-')), None)
    parser = argparse.ArgumentParser(
        prog='evit-mm', description='EfficientViT for MMDetection and MMSegmentation.',
        epilog='evit-mm COMMAND --help lists the flags of a command.')
    parser.add_argument('--version', action='version', version=f'evit-mm {__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    implementation: Any = None
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary)
        if name == chosen:  # importing the others too would slow every command down
            implementation = _implementation(command)
            subparser.description = implementation.DESCRIPTION
            implementation.add_arguments(subparser)
    return _exit_status(lambda: parser.parse_args(argv), lambda args: implementation.run(args))


def run_tool(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command under the name of its script in tools/.

    Args:
        name: The command, a key of `COMMANDS`.
        argv: The arguments after the script's name; those of the process by default.

    Returns:
        The exit status; see `evit_runtime.cli.exit_status`. It is 143 after SIGTERM in a training,
        which saves a checkpoint.
    """
    command = COMMANDS[name]
    implementation = _implementation(command)
    parser = argparse.ArgumentParser(prog=command.script, description=implementation.DESCRIPTION)
    implementation.add_arguments(parser)
    return _exit_status(lambda: parser.parse_args(argv), implementation.run)


def _implementation(command: Command) -> Any:
    return import_module(f'evit_mm.cli.{command.module}')


def _exit_status(parse: Callable[[], argparse.Namespace],
                 run: Callable[[argparse.Namespace], Any]) -> int:
    """Parse and run a command with what a launcher of processes needs around it."""
    # setuptools warns of this at every import of mmengine.
    warnings.filterwarnings('ignore', message='.*pkg_resources is deprecated')
    launchers: list[str] = []
    ends: list[int] = []

    def run_in_process(args: argparse.Namespace) -> None:
        if getattr(args, 'local_rank', None) is not None:
            os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
        try:
            run(args)
        except (Interrupted, Terminated) as stopped:  # a training, which says what it has saved
            print(f'{stopped.args[0]}{_how_to_resume(args)}', file=sys.stderr)
            ends.append(130 if isinstance(stopped, Interrupted) else 143)
        launchers.append(getattr(args, 'launcher', 'none'))

    status = exit_status(parse, run_in_process)
    if ends:
        return ends[0]
    if status == 0 and launchers != ['none']:
        from ..engine.launch import work_is_done  # imports torch

        work_is_done()
    return status


def _how_to_resume(args: argparse.Namespace) -> str:
    """Return the command that goes on with a training, as the end of a sentence."""
    if getattr(args, 'launcher', 'none') != 'none':
        return '; to go on, start it in the same way with --resume'
    words = list(sys.argv[1:])
    if '--resume' in words:  # with or without a checkpoint
        place = words.index('--resume')
        del words[place:place + 1 + (args.resume not in (None, 'auto'))]
    words = [word for word in words if not word.startswith('--resume=')]
    program = ['evit-mm'] if Path(sys.argv[0]).name in ('evit-mm', '__main__.py') \
        else ['python', sys.argv[0]]
    return f'; to go on: {shlex.join([*program, *words, "--resume"])}'
