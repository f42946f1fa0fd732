"""The benchmark of a GPU: one table of backbones and detectors within a budget of time.

Each case is a measurement of its own, in which our networks take turns with their peers on images
of one size. Cases run in the order of their importance; what does not fit into the budget, or into
the memory of the card, is in the table with that reason.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..errors import UserError
from . import machine
from .forms import Form
from .measure import Row, measure, plan
from .model_factory import TIMM, TORCHVISION
from .networks import Network, build_networks
from .report import describe_row, format_milliseconds
from .tables import format_table
from .timing import OUT_OF_MEMORY, OUT_OF_TIME, Budget, quartiles

__all__ = ['CASES', 'Case', 'benchmark_gpu', 'peer_ratio']

_TIMM_PREFIX = f'{TIMM}efficientvit_'
_RESNET = f'{TORCHVISION}resnet50'
_SECONDS = 5.0  # in which the rows of a case take turns
_HEADER = ('network', 'mode', 'batch', 'image', 'form', 'dtype', 'ms', 'quartiles', 'runs',
           '/ timm', '/ ResNet-50', 'peak (MB)', 'difference')


def _forms(*names: str) -> tuple[Form, ...]:
    """Return forms in float32 and in bfloat16; a name may end in ``+graph``.

    Maps are channels-last in bfloat16, the layout of the tensor cores.
    """
    return tuple(Form(name.removesuffix('+graph'), dtype, layout, name.endswith('+graph'))
                 for name in names
                 for dtype, layout in (('fp32', 'contiguous'), ('bf16', 'channels-last')))


@dataclass(frozen=True)
class Case:
    """Networks and forms that are measured together, on images of one size.

    Attributes:
        archs: Our backbones.
        shape: Height and width of the images.
        batch: Number of images.
        mode: ``'inference'`` or ``'train'``; see `evit_mm.benchmark.forms.prepare`.
        compiled: Whether to measure the compiled forms, instead of all others.
        detector: Whether to measure RetinaNet on the backbones.
    """

    archs: tuple[str, ...]
    shape: tuple[int, int]
    batch: int = 1
    mode: str = 'inference'
    compiled: bool = False
    detector: bool = False

    @property
    def peers(self) -> tuple[str, ...]:
        """The networks to compare with: timm's ports, and ResNet-50 next to M4."""
        ports = () if self.detector else tuple(_TIMM_PREFIX + arch for arch in self.archs)
        return ports + (_RESNET,) * ('m4' in self.archs)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms of our networks."""
        if self.compiled:
            return _forms('compiled') + _forms('compiled+graph')
        if self.mode == 'train':
            return _forms('eager', 'folded', 'folded+graph')
        return _forms('eager', 'deploy', 'deploy+graph')

    @property
    def peer_forms(self) -> tuple[Form, ...]:
        """The forms of the peers; the eager ones are what ratios are relative to."""
        return _forms('eager', 'compiled') if self.compiled else _forms('eager', 'eager+graph')


_SMALL, _LARGE = (512, 512), (800, 1344)
_M4, _OTHERS = ('m4',), ('m0', 'm5')

CASES = (
    Case(_M4, _SMALL),
    Case(_M4, _LARGE, detector=True),
    Case(_M4, _SMALL, 16),
    Case(_M4, _SMALL, 16, 'train', detector=True),
    Case(_M4, _SMALL, compiled=True),
    Case(_M4, _SMALL, 16, 'train'),
    Case(_OTHERS, _SMALL),
    Case(_OTHERS, _SMALL, 16),
    Case(_M4, _LARGE),
    Case(_M4, _SMALL, detector=True),
    Case(_M4, _SMALL, 16, detector=True),
    Case(_M4, _LARGE, compiled=True, detector=True),
    Case(_M4, _LARGE, 16),
    Case(_M4, _LARGE, 16, detector=True),
    Case(_OTHERS, _LARGE),
    Case(_OTHERS, _LARGE, 16),
    Case(_M4, _SMALL, 16, compiled=True),
    Case(_M4, _SMALL, 16, 'train', compiled=True, detector=True),
    Case(_OTHERS, _SMALL, 16, 'train'),
    Case(_M4, _LARGE, 16, 'train', detector=True),
    Case(_OTHERS, _SMALL, compiled=True),
    Case(_M4, _LARGE, 16, compiled=True, detector=True),
    Case(_OTHERS, _SMALL, 16, compiled=True),
)
"""All cases, the most important ones first."""


def benchmark_gpu(*, out: Path, device: str = 'cuda', budget: float = 300, repeats: int = 30,
                  threads: int | None = None, seed: int = 0, cases: Sequence[Case] = CASES,
                  report: Callable[[str], Any] | None = None) -> list[Row]:
    """Measure backbones and RetinaNets with random weights on a GPU, as one table.

    Args:
        out: Folder that gets ``benchmark.md`` and ``benchmark.json``, which are written at the
            start and anew after each case.
        device: The device as torch names it. On any other than a GPU, the forms that are CUDA
            graphs are left out.
        budget: Seconds after which no further row is prepared. The row that is being prepared, and
            the case that it belongs to, are finished.
        repeats: Most timed runs of each row; slow ones have fewer.
        threads: Number of CPU threads; by default torch's choice.
        seed: Seed of weights, images and the order of runs.
        cases: What to measure.
        report: Receives a line after each case, and the table at the end, such as `print`.

    Returns:
        list[Row]: All rows; those without figures have the reason in ``failure``.

    Raises:
        UserError: If an argument can't be used, or a file can't be written.
    """
    for name, number in (('--budget', budget), ('--repeats', repeats)):
        if not number > 0:
            raise UserError(f'{name} must be positive, got {number}')
    on = machine.use(device, threads=threads)
    _create(out)
    clock = Budget(budget)
    built: dict[tuple[Any, ...], list[Network]] = {}
    settings = {'device': device, 'machine': machine.describe(on), 'driver': machine.driver(),
                'versions': machine.versions(), 'budget': budget, 'repeats': repeats, 'seed': seed,
                'tf32': {'convolutions': torch.backends.cudnn.allow_tf32,
                         'matrix products': torch.backends.cuda.matmul.allow_tf32}}
    if on.type == 'cuda':
        settings['memory'] = torch.cuda.get_device_properties(on).total_memory
    measured = {case: _unmeasured(case, on) for case in cases}
    _write(out, settings, measured)  # so that a run that is ended early has reported all rows
    for case in cases:
        rows = measured[case] = _measure(case, built, on, repeats, clock, seed)
        _write(out, settings, measured)
        if report:
            report(f'{_title(case)}: {sum(row.failure is None for row in rows)} of {len(rows)} '
                   f'rows, {max(0, clock.left):.0f} s left')
    if report:
        report('\n' + _format(settings, measured))
        report(f'\nwritten to {out / "benchmark.md"} and {out / "benchmark.json"}')
    return [row for rows in measured.values() for row in rows]


def peer_ratio(row: Row, rows: Iterable[Row], peer: str) -> float | None:
    """Return a row's median time relative to a peer's in the same measurement.

    Args:
        row: The row.
        rows: All rows of the measurement.
        peer: Name of the peer. Its eager form in the row's dtype is compared with.

    Returns:
        float: None if there is no such row, or either failed.
    """
    for other in rows:
        if other.model == peer and (other.form.name, other.form.graph, other.form.dtype) == \
                ('eager', False, row.form.dtype):
            if row.failure is None and other.failure is None:
                return row.timings.milliseconds / other.timings.milliseconds
            return None
    return None


def _create(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'can\'t write {out}: {error.strerror}; --out needs another folder'
                        ) from error


def _forms_on(case: Case, device: torch.device) -> tuple[list[Form], list[Form]]:
    """Return our forms and the peers', without graphs on devices that have none."""
    own, others = ([form for form in forms if device.type == 'cuda' or not form.graph]
                   for forms in (case.forms, case.peer_forms))
    return own, others


def _measure(case: Case, built: dict[tuple[Any, ...], list[Network]], device: torch.device,
             repeats: int, budget: Budget, seed: int) -> list[Row]:
    if budget.left < 0:
        return _unmeasured(case, device)
    key = case.archs, case.detector
    if key not in built:
        built[key] = build_networks(case.archs, with_head=case.detector, peers=case.peers,
                                    seed=seed)
    generator = torch.Generator().manual_seed(seed)
    try:
        images = torch.randn(case.batch, 3, *case.shape, generator=generator).to(device)
    except torch.OutOfMemoryError:
        return _unmeasured(case, device, OUT_OF_MEMORY)
    own, others = _forms_on(case, device)
    rows, _ = measure(built[key], own, others, images, mode=case.mode, repeats=repeats,
                      floors=False, budget=budget, seconds=_SECONDS, seed=seed)
    return rows


def _unmeasured(case: Case, device: torch.device, reason: str = OUT_OF_TIME) -> list[Row]:
    """Return the rows of a case without figures."""
    networks = [*(Network(arch, None, arch) for arch in case.archs),
                *(Network(name, None, peer=True) for name in case.peers)]
    rows = [row for row, _ in plan(networks, *_forms_on(case, device), case.shape)]
    for row in rows:
        row.timings.failure = reason
    return rows


def _title(case: Case) -> str:
    networks = ', '.join(arch.upper() for arch in case.archs)
    return ' '.join([*['RetinaNet on'] * case.detector, networks,
                     *['compiled'] * case.compiled,
                     'training step' if case.mode == 'train' else 'inference',
                     f'{case.batch} x {case.shape[0]}x{case.shape[1]}'])


def _write(out: Path, settings: Mapping[str, Any], measured: Mapping[Case, list[Row]]) -> None:
    with files.write_atomically(out / 'benchmark.md') as file:
        file.write(_format(settings, measured) + '\n')
    rows = [{**describe_row(row), 'detector': case.detector, 'mode': case.mode,
             'batch': case.batch, 'to_timm': _to_timm(row, rows),
             'to_resnet50': peer_ratio(row, rows, _RESNET)}
            for case, rows in measured.items() for row in rows]
    files.write_json(out / 'benchmark.json', {'settings': dict(settings), 'rows': rows}, indent=1)


def _format(settings: Mapping[str, Any], measured: Mapping[Case, list[Row]]) -> str:
    lines: list[list[object]] = []
    below: dict[str, None] = {}  # a set that keeps the order
    for case, rows in measured.items():
        reasons = {row.failure for row in rows}
        if reasons == {OUT_OF_TIME} or reasons == {OUT_OF_MEMORY}:
            below[f'not measured, {rows[0].failure}: {_title(case)} ({len(rows)} rows)'] = None
            continue
        lines += [_cells(case, row, rows) for row in rows]
        # In the table a reason is short; what an error said is below it.
        below.update({f'failed: {row}: {row.failure}': None for row in rows
                      if row.failure not in (None, OUT_OF_MEMORY, OUT_OF_TIME)})
    table = format_table(_HEADER, lines, align='llllll' + 'r' * (len(_HEADER) - 6))
    return '\n\n'.join([_describe(settings), table, '\n'.join(f'- {line}' for line in below)])


def _describe(settings: Mapping[str, Any]) -> str:
    tf32 = settings['tf32']
    card = [settings['machine']]
    if 'memory' in settings:
        card.append(f'{settings["memory"] / 1e9:.0f} GB')
    if settings['driver']:
        card.append(f'driver {settings["driver"]}')
    card += [f'{name} {version}' for name, version in settings['versions'].items()]
    return '\n'.join([
        ', '.join(card) + '.',
        f'Median and quartiles of at most {settings["repeats"]} interleaved runs. fp32: '
        f'contiguous, TF32 {_on_off(tf32["convolutions"])} in convolutions and '
        f'{_on_off(tf32["matrix products"])} in matrix products; bf16: channels-last, in training '
        'by autocast.',
        '"/ timm" and "/ ResNet-50": time relative to timm\'s port of the same backbone and to '
        'torchvision\'s ResNet-50 in the same place, eager, in the same dtype and measurement.',
        'Peak: memory besides weights and images. Difference: of the results, to the same network '
        'as built in fp32.'])


def _cells(case: Case, row: Row, rows: list[Row]) -> list[object]:
    name = row.model.rpartition('//')[2]
    name = f'timm {name}' if row.model.startswith(TIMM) else name
    cells: list[object] = [
        f'RetinaNet, {name}' if case.detector else name, case.mode, case.batch,
        f'{case.shape[0]}x{case.shape[1]}', f'{row.form.name}, graph' if row.form.graph
        else row.form.name, row.form.dtype]
    if row.failure is not None:
        reason = row.failure if row.failure in (OUT_OF_MEMORY, OUT_OF_TIME) else 'failed'
        return [*cells, reason, *[None] * (len(_HEADER) - len(cells) - 1)]
    ratios = [_to_timm(row, rows), peer_ratio(row, rows, _RESNET)]
    return [*cells, format_milliseconds(row.timings.milliseconds),
            ' to '.join(map(format_milliseconds, quartiles(row.timings.totals))),
            len(row.timings.totals),
            *(None if ratio is None else f'{ratio:.2f}' for ratio in ratios),
            None if row.peak is None else f'{row.peak / 1e6:.0f}',
            None if row.difference is None or math.isnan(row.difference)
            else f'{row.difference:.0e}']


def _to_timm(row: Row, rows: Iterable[Row]) -> float | None:
    return peer_ratio(row, rows, f'{_TIMM_PREFIX}{row.arch}') if row.arch else None


def _on_off(value: bool) -> str:
    return 'on' if value else 'off'
