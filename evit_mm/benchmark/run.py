"""The benchmark, from the names of models to tables and files."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..deployment.memory import keep_freed_memory
from ..errors import UserError
from . import machine
from .forms import DTYPES, FORMS, LAYOUTS, PEER_FORMS, Form
from .measure import Rate, Row, measure, plan
from .networks import build_networks, default_peers
from .report import format_parts, format_rates, format_rows, reference_of, write_json

__all__ = ['benchmark']


def benchmark(models: Sequence[str], *, mode: str = 'inference', forms: Sequence[str] | None = None,
              dtypes: Sequence[str] = ('fp32',), layouts: Sequence[str] = ('contiguous',),
              cuda_graphs: bool = False, with_neck: bool = False, with_head: bool = False,
              until: str | None = None, variants: Sequence[tuple[str, Mapping[str, Any]]] = (),
              options: Mapping[str, Any] | None = None, peers: bool = False,
              peer_forms: Sequence[str] = ('eager',), reference: str | None = None,
              shapes: Sequence[tuple[int, int]] = ((512, 512),), batch: int = 1, repeats: int = 30,
              threads: int | None = None, system_malloc: bool = False, device: str = 'cpu',
              seed: int = 0, json: Path | None = None, plot: Path | None = None,
              report: Callable[[str], Any] | None = None) -> list[Row]:
    """Measure time, memory, parameters and multiply-adds of models with random weights.

    The rows, one for each model and form, take turns in one run. Settings of torch and malloc that
    the measurement needs stay in effect in this process.

    Args:
        models: ``'m0'`` to ``'m5'``, paths of configs, ``'timm://MODEL'``,
            ``'torchvision://resnet50'`` or ``'torchvision://mobilenet_v3_large'``.
        mode: ``'inference'``, or ``'train'`` for the forward and backward pass of a training step
            with frozen BN statistics.
        forms: Names in `FORMS`; by default all that need neither a compiler nor mmengine's code.
        dtypes: ``'fp32'``, ``'bf16'`` or ``'fp16'``; training runs under autocast.
        layouts: ``'contiguous'`` or ``'channels-last'``, for images and weights.
        cuda_graphs: Whether to measure each form as a CUDA graph too.
        with_neck: Whether to put RetinaNet's neck after backbones.
        with_head: Whether to put RetinaNet's neck and head after backbones.
        until: Last part of a config's model to measure, ``'backbone'`` or ``'neck'``.
        variants: Title and changed options of each variant of a single model.
        options: Values of configs by dotted key, or arguments of our backbones.
        peers: Whether to add timm's port of each of our backbones, with the same weights, and two
            backbones of torchvision.
        peer_forms: Names in `PEER_FORMS`.
        reference: Row or model that ratios are relative to; see `reference_of`.
        shapes: Height and width of the images; each pair gives a table.
        batch: Number of images per run.
        repeats: Number of timed runs of each row.
        threads: Number of CPU threads; by default torch's choice.
        system_malloc: Whether malloc returns freed memory to the system, its default, so that a
            CPU pays for new pages in each run. Otherwise it keeps freed memory, as in training and
            with ``test(fast=True)``.
        device: The device as torch names it.
        seed: Seed of weights, images and the order of runs.
        json: File for all results, written anew after each image size.
        plot: File for a figure; see `plot`.
        report: Receives the tables of each image size as soon as it is done, such as `print`.

    Returns:
        list[Row]: All rows; those that failed have the reason in ``failure``.

    Raises:
        UserError: If an argument can't be used, or a model can't be built.
    """
    arguments = {name: str(value) if isinstance(value, Path) else value
                 for name, value in locals().items() if name != 'report'}
    forms = forms or FORMS[mode][:2]
    _check_numbers(shapes, batch, repeats)
    _check_files(json, plot)
    _check_forms(mode, forms, peer_forms, dtypes, layouts)
    if cuda_graphs and not device.startswith('cuda'):
        raise UserError('--cuda-graphs needs --device cuda')
    on = machine.use(device, threads=threads)
    if on.type == 'cpu' and not system_malloc:
        keep_freed_memory()  # half of the spread between runs is page faults
    graphs = (False, True) if cuda_graphs else (False,)
    own = list(_combine(forms, dtypes, layouts, graphs))
    others = list(_combine(peer_forms, dtypes, layouts, graphs))
    networks = build_networks(models, options=options, variants=variants, with_neck=with_neck,
                              with_head=with_head, until=until,
                              peers=default_peers(models) if peers else (), seed=seed)
    if reference:
        planned = [row for row, _ in plan(networks, own, others, shapes[0])]
        reference_of(planned[0], planned, reference)  # fails now instead of after minutes
    settings = {**arguments, 'machine': machine.describe(on),
                'num_threads': torch.get_num_threads(), 'versions': machine.versions()}
    generator = torch.Generator().manual_seed(seed)
    tables: list[tuple[list[Row], list[Rate]]] = []
    for height, width in shapes:
        images = torch.randn(batch, 3, height, width, generator=generator).to(on)
        rows, rates = measure(networks, own, others, images, mode=mode, repeats=repeats, seed=seed,
                              progress=sys.stderr.isatty())
        tables.append((rows, rates))
        if report:
            title = (f'{batch} x 3 x {height} x {width}, '
                     f'{"training step" if mode == "train" else "inference"}, '
                     f'{machine.describe(on)}, median of {repeats} interleaved runs')
            report(_format(title, rows, rates, reference))
        if json:
            write_json(json, settings, tables, reference)
    if plot:
        from .plot import plot as draw  # importing matplotlib takes a second

        draw(plot, [rows for rows, _ in tables], reference)
    return [row for rows, _ in tables for row in rows]


def _format(title: str, rows: list[Row], rates: list[Rate], reference: str | None) -> str:
    layouts = {row.form.layout for row in rows}
    layout = f', {layouts.pop()}' if len(layouts) == 1 else ''
    references = {str(reference_of(row, rows, reference)) for row in rows} - {'None'}
    compared = ', '.join(sorted(references)) or 'a row that failed'
    blocks = [f'\n{title}{layout}\nratio: to {compared}',
              format_rows(rows, reference), format_parts(rows), format_rates(rates)]
    return '\n\n'.join(filter(None, blocks))


def _check_numbers(shapes: Iterable[tuple[int, int]], batch: int, repeats: int) -> None:
    for name, number in (('--shape', min(map(min, shapes))), ('--batch', batch),
                         ('--repeats', repeats)):
        if number < 1:
            raise UserError(f'{name} must be positive, got {number}')


def _check_files(json: Path | None, plot: Path | None) -> None:
    for name, path in (('--json', json), ('--plot', plot)):
        if path and not path.absolute().parent.is_dir():
            raise UserError(f'{name} {path}: no such folder: {path.parent}')
        if path and path.is_dir():
            raise UserError(f'{name} {path} is a folder: name the file to write')


def _check_forms(mode: str, forms: Iterable[str], peer_forms: Iterable[str],
                 dtypes: Iterable[str], layouts: Iterable[str]) -> None:
    for name, values, choices in (('--forms', forms, FORMS[mode]),
                                  ('--peer-forms', peer_forms, PEER_FORMS[mode]),
                                  ('--dtype', dtypes, DTYPES), ('--layouts', layouts, LAYOUTS)):
        for value in values:
            if value not in choices:
                raise UserError(f'{name} {value} is not possible with --mode {mode}: choose from '
                                f'{", ".join(choices)}')


def _combine(names: Iterable[str], dtypes: Iterable[str], layouts: Iterable[str],
             graphs: Iterable[bool]) -> Iterator[Form]:
    for name in dict.fromkeys(names):
        for dtype in dict.fromkeys(dtypes):
            for layout in dict.fromkeys(layouts):
                for graph in graphs:
                    yield Form(name, dtype, layout, graph)
