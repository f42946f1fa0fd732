"""From the command line's options to tables and files."""

import platform
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..deployment.memory import keep_freed_memory
from ..errors import UserError
from . import machine
from .forms import FORMS, Form
from .measure import Rate, Row, measure, plan
from .networks import build_networks
from .report import format_parts, format_rates, format_rows, reference_of, write_json

__all__ = ['benchmark']

_DEFAULT_SHAPE = (512, 512)


def benchmark(options: Namespace) -> list[Row]:
    """Measure what ``options`` name; see `evit_mm.cli.benchmark_parser`.

    Every image size is printed, and written to ``--json``, as soon as it is done.

    Raises:
        UserError: If an option can't be used, or, after everything else was measured and
            reported, if a row failed that was asked for by name.
    """
    _check(options)
    device = machine.use(options.device, threads=options.threads)
    if device.type == 'cpu' and not options.system_malloc:
        keep_freed_memory()  # as the tools do, for all of them: half of the spread is page faults
    place = machine.describe(device)
    forms = list(_forms(options, options.forms or _default_forms(options.mode)))
    # Other people's run in each number format and layout, but in no form of ours.
    peer_forms = list(_forms(options, options.peer_forms))
    networks = build_networks(
        options.subjects, options=options.cfg_options, variants=options.variant or (),
        with_neck=options.with_neck, until=options.until, peers=options.peers, seed=options.seed)
    if options.reference:
        rows = [row for row, _ in plan(networks, forms, peer_forms, _DEFAULT_SHAPE)]
        reference_of(rows[0], rows, options.reference)  # now, not after minutes
    settings = _settings(options, place)
    generator = torch.Generator().manual_seed(options.seed)
    tables: list[tuple[list[Row], list[Rate]]] = []
    for height, width in _shapes(options):
        images = torch.randn(options.batch, 3, height, width, generator=generator).to(device)
        rows, rates = measure(networks, forms, peer_forms, images, mode=options.mode,
                              repeats=options.repeats, seed=options.seed,
                              progress=sys.stderr.isatty())
        _print(rows, rates, options, place)
        tables.append((rows, rates))
        if options.json:
            write_json(options.json, settings, tables, options.reference)
    if options.plot:
        from .plot import plot  # matplotlib takes a second to import
        plot(options.plot, [rows for rows, _ in tables], options.reference)
    found = [row for rows, _ in tables for row in rows]
    named = [row for row in found if row.failure and not (options.peers and row.peer)]
    if named:
        raise UserError(f'{len(named)} of {len(found)} rows failed, the first one is {named[0]}: '
                        f'{named[0].failure}')
    return found


def _print(rows: list[Row], rates: list[Rate], options: Namespace, place: str) -> None:
    height, width = rows[0].shape
    what = 'training step' if options.mode == 'train' else 'inference'
    layouts = {row.form.layout for row in rows}
    layout = f', {layouts.pop()}' if len(layouts) == 1 else ''
    print(f'\n{options.batch} x 3 x {height} x {width}, {what}{layout}, {place}, median of '
          f'{options.repeats} interleaved runs')
    references = {str(reference_of(row, rows, options.reference)) for row in rows}
    print(f'ratio: to {", ".join(sorted(references - {"None"})) or "a row that failed"}\n')
    print(format_rows(rows, options.reference))
    parts = format_parts(rows)
    if parts:
        print(f'\n{parts}')
    print(f'\n{format_rates(rates)}')


def _check(options: Namespace) -> None:
    numbers = [('--shape', min(min(shape) for shape in _shapes(options))),
               ('--batch', options.batch), ('--repeats', options.repeats)]
    for name, number in numbers:
        if number < 1:
            raise UserError(f'{name} must be positive, got {number}')
    for name, path in (('--json', options.json), ('--plot', options.plot)):
        if path and not path.absolute().parent.is_dir():
            raise UserError(f'{name} {path}: there is no folder {path.parent}')
        if path and path.is_dir():
            raise UserError(f'{name} {path} is a folder: name the file to write')
    if options.shape and options.shapes:
        raise UserError('--shape gives one size, --shapes several: pass one of them')
    for form in (*(options.forms or ()), *options.peer_forms):
        if form not in FORMS[options.mode]:
            raise UserError(f'{form} is no form of --mode {options.mode}: choose from '
                            f'{", ".join(FORMS[options.mode])}')
    if options.cuda_graphs and not options.device.startswith('cuda'):
        raise UserError('--cuda-graphs needs --device cuda')
    if options.cuda_graphs and options.mode == 'train' and 'compiled' not in (options.forms or ()):
        raise UserError('--cuda-graphs of a training step are those of torch.compile: '
                        'add --forms compiled')


def _shapes(options: Namespace) -> list[tuple[int, int]]:
    if options.shape:
        return [tuple(options.shape)]
    return options.shapes or [_DEFAULT_SHAPE]


def _default_forms(mode: str) -> tuple[str, ...]:
    return FORMS[mode][:2]  # what needs no compiler


def _forms(options: Namespace, names: Any) -> Iterator[Form]:
    for name in dict.fromkeys(names):
        for dtype in dict.fromkeys(options.dtype):
            for layout in dict.fromkeys(options.layouts):
                yield Form(name, dtype, layout)
                if options.cuda_graphs and _has_graph(name, options.mode):
                    yield Form(name, dtype, layout, graph=True)


def _has_graph(name: str, mode: str) -> bool:
    return name == 'compiled' or mode == 'inference'


def _settings(options: Namespace, place: str) -> dict[str, Any]:
    asked = {name: str(value) if isinstance(value, Path) else value
             for name, value in vars(options).items()}
    versions = {'evit_mm': __version__, 'python': platform.python_version(),
                'torch': torch.__version__, **_installed('timm', 'torchvision')}
    return {**asked, 'machine': place, 'num_threads': torch.get_num_threads(),
            'versions': versions}


def _installed(*names: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
