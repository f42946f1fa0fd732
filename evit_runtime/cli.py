"""The command ``evit-run``, and the arguments and endings that ``evit-mm`` has in common with it.

Only the standard library is imported before a command runs.
"""

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .errors import UserError, is_full_disk
from .version import __version__

__all__ = ['APP', 'INPUT_HELP', 'PREDICT', 'add_app_arguments', 'add_predict_arguments',
           'exit_status', 'main', 'run_app', 'run_predict']

PREDICT = ('Predict pictures, folders, videos, addresses or a webcam, and write annotated '
           'pictures, COCO\'s JSON, CSV and label maps into a folder.')
APP = ('Open a page on this machine: drop a picture, see what the model finds, move the threshold, '
       'switch classes off, download picture and JSON.')

INPUT_HELP = ('a picture, a video, a folder, a pattern such as "photos/*.jpg", an address, or the '
              'number of a webcam')

_STDOUT = 1  # the file descriptor: sys.stdout may have been replaced
_EPILOG = 'evit-run COMMAND --help lists the flags of a command.'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``evit-run``.

    Args:
        argv: The arguments after the program's name; those of the process by default.

    Returns:
        The exit status; see `exit_status`.
    """
    return exit_status(lambda: build_parser().parse_args(argv), lambda args: args.run(args))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``evit-run``."""
    parser = argparse.ArgumentParser(
        prog='evit-run', epilog=_EPILOG,
        description='Exported EfficientViT detectors and segmentors, without PyTorch.')
    parser.add_argument('--version', action='version', version=f'evit-run {__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    predict = commands.add_parser('predict', help='predict pictures and videos',
                                  description=PREDICT)
    predict.add_argument('file', metavar='FILE', help='model.onnx or model.xml of evit-mm export')
    predict.add_argument('inputs', nargs='+', metavar='INPUT', help=INPUT_HELP)
    add_predict_arguments(predict)
    predict.set_defaults(run=lambda args: run_predict(lambda: _load(args), args.inputs, args))
    app = commands.add_parser('app', help='open a page in the browser', description=APP)
    app.add_argument('file', metavar='FILE', help='model.onnx or model.xml of evit-mm export')
    add_app_arguments(app)
    app.set_defaults(run=lambda args: run_app(lambda: _load(args), args))
    return parser


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``predict``."""
    parser.add_argument('--out', metavar='DIR',
                        help='folder of the results (default: a new one, predictions)')
    parser.add_argument('--overwrite', action='store_true',
                        help='write into a folder that is not empty')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='X',
                        help='lowest score of the objects (0.3)')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='keep these classes only')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N',
                        help='images, or tiles, that are computed at a time (1)')
    parser.add_argument('--tiles', type=int, nargs='?', const=640, metavar='N',
                        help='predict in overlapping tiles of N pixels (640), for small objects in '
                        'large images')
    parser.add_argument('--tile-overlap', type=float, default=0.2, metavar='X',
                        help='part of a tile that its neighbour has, too (0.2)')
    parser.add_argument('--track', action='store_true',
                        help='follow objects through the frames of a video')
    parser.add_argument('--save-crops', action='store_true',
                        help='write each object as a picture, in crops/')
    parser.add_argument('--no-pictures', action='store_true',
                        help='write no annotated pictures and videos')
    add_model_arguments(parser)


def add_app_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``app``."""
    parser.add_argument('--port', type=int, default=7860, metavar='N',
                        help='port of the page (7860; 0 takes any that is free)')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='X',
                        help='where the threshold of scores starts (0.3)')
    parser.add_argument('--no-browser', action='store_true',
                        help='print the address, and open no browser')
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that concern the model."""
    parser.add_argument('--device', default='cpu', metavar='NAME',
                        help='where the model computes: cpu, cuda or cuda:1 (cpu)')
    parser.add_argument('--max-megapixels', type=float, metavar='X',
                        help='refuse pictures with more than X million pixels (100)')


def run_predict(load: Callable[[], Any], inputs: Sequence[str], args: argparse.Namespace) -> None:
    """Predict as the flags say, and print a summary.

    Args:
        load: Called for the model, which takes seconds, when the inputs have been found.
        inputs: The inputs.
        args: The flags.

    Raises:
        UserError: If an argument is wrong, or some inputs could not be read.
        KeyboardInterrupt: After Ctrl-C, when the tables are written.
    """
    from .inputs import find_sources
    from .predict import predict

    find_sources(inputs)
    model = _limited(load(), args)
    summary = predict(
        model, inputs, out=args.out, overwrite=args.overwrite, score_threshold=args.score_thr,
        classes=_classes(args.classes, model), batch_size=args.batch_size,
        draw=not args.no_pictures, save_crops=args.save_crops, tiles=args.tiles,
        tile_overlap=args.tile_overlap, track=args.track, progress=sys.stderr.isatty())
    print(summary)
    if summary.interrupted:
        raise KeyboardInterrupt
    if summary.failures:
        count = len(summary.failures)
        raise UserError(f'{count} input{"s" if count > 1 else ""} could not be read, as said above')


def run_app(load: Callable[[], Any], args: argparse.Namespace) -> None:
    """Open the page as the flags say, until Ctrl-C.

    Args:
        load: Called for the model.
        args: The flags.

    Raises:
        UserError: If an argument is wrong, or gradio is not installed.
    """
    from .page import serve

    serve(_limited(load(), args), port=args.port, score_threshold=args.score_thr,
          browser=not args.no_browser)


def exit_status(parse: Callable[[], argparse.Namespace],
                run: Callable[[argparse.Namespace], Any]) -> int:
    """Parse and run a command, and turn its errors into an exit status and a sentence.

    A `UserError` or a missing package ends it with one sentence on stderr; the environment variable
    EVIT_MM_TRACEBACK=1 shows the traceback instead.

    Returns:
        The exit status: 0; 1 if a package is missing; 2 after a mistake of the user; 130 after
        Ctrl-C; 141 if the reader of stdout is gone, as in ``| head -1``.
    """
    show_traceback = bool(os.environ.get('EVIT_MM_TRACEBACK'))
    try:
        run(parse())
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's shutdown
    except UserError as error:
        if show_traceback:
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    except ImportError as error:
        if show_traceback:
            raise
        print(f'error: {error} (EVIT_MM_TRACEBACK=1 shows where)', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted; what was saved is kept', file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _stdout_is_closed():  # a socket or another process's pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)  # for what is still buffered
        return 141
    except OSError as error:
        if show_traceback or not is_full_disk(error):
            raise
        print(f'error: can\'t write {error.filename or "a file"}: {error.strerror}; free some '
              'space and run it again', file=sys.stderr)
        return 2
    return 0


def _stdout_is_closed() -> bool:
    """Return whether stdout is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _load(args: argparse.Namespace) -> Any:
    from . import load_model

    return load_model(args.file, device=args.device)


def _limited(model: Any, args: argparse.Namespace) -> Any:
    """Return a model with the limit of pixels that a flag sets.

    Raises:
        UserError: If the number is not positive.
    """
    if args.max_megapixels is not None:
        if not args.max_megapixels > 0:
            raise UserError(f'--max-megapixels is more than 0, but got {args.max_megapixels:g}')
        model.max_pixels = int(args.max_megapixels * 1e6)
    return model


def _classes(given: Sequence[str] | None, model: Any) -> list[str | int] | None:
    """Return classes by name, or by number where no class has such a name."""
    if given is None:
        return None
    return [int(name) if name.isdecimal() and name not in model.class_names else name
            for name in given]
