"""Measure networks in several forms at one image size: one row of the table for each."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from .flops import count_macs, count_parameters
from .forms import DTYPES, Case, Form, dress, largest_difference
from .memory import peak_bytes, saved_bytes
from .networks import Network
from .roofline import Convolution, convolution_work, heaviest_convolutions
from .timing import Stopwatch, Turns, Work, reason, run, take_turns

__all__ = ['Rate', 'Row', 'measure', 'plan']


@dataclass
class Row:
    """What a network in a form costs for images of one size.

    Attributes:
        model: The network's name.
        form: The form.
        shape: Height and width.
        arch: Of ours and timm's, ``'m0'`` to ``'m5'``.
        peer: Whether it is somebody else's.
        params: Parameters of the network as built, by part.
        macs: Multiply-adds of the network as built, by step. Forms are measured against the same
            arithmetic, whatever they fold.
        turns: The times, and the failure if there is one.
        difference: Largest relative difference to what the first network of the same weights
            gives as built, in float32; None for that one itself.
        peak: Bytes at the peak of a run beyond weights and images; None where not measured.
        saved: Bytes saved for the backward pass; None in inference.
        floor: Milliseconds that the arithmetic would take at the convolution rate.
    """

    model: str
    form: Form
    shape: tuple[int, int]
    arch: str | None = None
    peer: bool = False
    params: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    turns: Turns = field(default_factory=Turns)
    difference: float | None = None
    peak: int | None = None
    saved: int | None = None
    floor: float | None = None

    def __str__(self) -> str:
        """Such as ``'m4 deploy fp32'``."""
        return f'{self.model} {self.form}'

    @property
    def failure(self) -> str | None:
        """Why there are no figures."""
        return self.turns.failure


@dataclass(frozen=True)
class Rate:
    """What a convolution reached.

    Attributes:
        convolution: The convolution.
        dtype: The number format.
        shape: Height and width of the images in whose network it is.
        per_second: Multiply-adds per second, from the median time.
    """

    convolution: Convolution
    dtype: str
    shape: tuple[int, int]
    per_second: float


@dataclass(frozen=True)
class _Study:
    """What is known of a network before it is timed."""

    params: dict[str, int]
    macs: dict[str, int]
    convolutions: list[Convolution]
    outcome: dict[str, Tensor]


def plan(networks: Iterable[Network], forms: Iterable[Form], peer_forms: Iterable[Form],
         shape: tuple[int, int]) -> list[tuple[Row, Network]]:
    """The rows to measure, with what they are of; other people's networks have their own forms."""
    forms, peer_forms = list(forms), list(peer_forms)
    return [(Row(network.name, form, shape, network.arch, network.peer), network)
            for network in networks for form in (peer_forms if network.peer else forms)]


def measure(networks: Iterable[Network], forms: Iterable[Form], peer_forms: Iterable[Form],
            images: Tensor, *, mode: str = 'inference', repeats: int = 30, seed: int = 0,
            progress: bool = False) -> tuple[list[Row], list[Rate]]:
    """Measure all networks in all forms; they and the convolutions of the floor take turns.

    Args:
        networks: What `build_networks` gave.
        forms: How to run our networks and those of configs.
        peer_forms: How to run other people's.
        images: Normalised images (B, 3, H, W), float32, on the device to run on.
        mode: ``'inference'`` or ``'train'``; see `dress`.
        repeats: Runs of each row that count.
        seed: Of the order in which rows take turns.
        progress: Show progress bars on stderr.

    Returns:
        tuple: The rows, and the rates of the convolutions. What fails is a row with the reason.
    """
    # What was compiled for another size must not turn this one's code into one for all sizes.
    torch.compiler.reset()
    shape = (images.shape[2], images.shape[3])
    planned = plan(networks, forms, peer_forms, shape)
    rows = [row for row, _ in planned]
    cases: list[Case | None] = []
    studies: dict[str, _Study] = {}
    expected: dict[str, tuple[str, dict[str, Tensor]]] = {}
    with tqdm(total=len(rows), desc='preparing', unit='row', disable=not progress,
              leave=False) as bar:
        for row, network in planned:
            bar.set_postfix_str(str(row))
            try:
                if network.name not in studies:
                    studies[network.name] = _study(network, images, mode)
                study = studies[network.name]
                giver, outcome = expected.setdefault(network.weights,
                                                     (network.name, study.outcome))
                row.params, row.macs = study.params, study.macs
                cases.append(_prepared(row, network, images, mode, outcome))
                if row.form == Form() and giver == network.name:
                    row.difference = None
            except Exception as error:  # one row's must not cost the others theirs
                cases.append(None)
                row.turns.failure = reason(error)
                _let_go(images.device)
            bar.update()
    title = f'{shape[0]}x{shape[1]}'
    return rows, _time(rows, cases, studies, images.device, repeats, seed, progress, title)


def _study(network: Network, images: Tensor, mode: str) -> _Study:
    if network.model is None:
        raise UserError(network.failure or 'it can\'t be built')
    plain = dress(network.model, Form(), images, mode=mode, peer=network.peer)
    return _Study({part: count_parameters([module]) for part, module in network.model.items()},
                  count_macs(plain.work, plain.given),
                  heaviest_convolutions({'forward': lambda _: plain.forward()}, None),
                  plain.outcome())


def _prepared(row: Row, network: Network, images: Tensor, mode: str, expected: dict[str, Tensor]
              ) -> Case:
    """Dress the network, and note in the row all but the times."""
    assert network.model is not None
    case = dress(network.model, row.form, images, mode=mode, peer=network.peer)
    row.difference = largest_difference(case.outcome(), expected)
    # Gradients that were there before would be given back in the middle of what is watched.
    case.model.zero_grad(set_to_none=True)
    if not row.form.graph:  # a graph has taken its memory when it was recorded
        row.peak = peak_bytes(lambda: run(case.work, case.given), images.device)
    if mode == 'train':
        row.saved = saved_bytes(case.forward, [case.model])
    return case


def _time(rows: list[Row], cases: list[Case | None], studies: dict[str, _Study],
          device: torch.device, repeats: int, seed: int, progress: bool, title: str) -> list[Rate]:
    """Let all rows and the convolutions of their floors take turns; returns the rates."""
    works: dict[str, Work] = {}
    given: dict[str, Tensor | None] = {}
    for number, case in enumerate(cases):
        if case is not None:
            works[str(number)], given[str(number)] = case.work, case.given
    wanted = {(conv, row.form.dtype): row.shape for row, case in zip(rows, cases, strict=True)
              if case is not None for conv in studies[row.model].convolutions}
    to_rate = {}
    for conv, dtype in wanted:
        name = f'{conv} in {dtype}'
        works[name], to_rate[conv, dtype] = convolution_work(conv, DTYPES[dtype], device)
        given[name] = None
    turns = take_turns(works, given, Stopwatch(device), repeats=repeats, seed=seed,
                       progress=progress, title=title)
    rates = []
    for (conv, dtype), shape in wanted.items():
        turn = turns[f'{conv} in {dtype}']
        if turn.failure is None:
            rates.append(Rate(conv, dtype, shape, to_rate[conv, dtype](turn.milliseconds)))
    for number, (row, case) in enumerate(zip(rows, cases, strict=True)):
        if case is None:
            continue
        row.turns = turns[str(number)]
        own = set(studies[row.model].convolutions)
        best = max((rate.per_second for rate in rates
                    if rate.dtype == row.form.dtype and rate.convolution in own), default=None)
        if best:
            row.floor = sum(row.macs.values()) / best * 1e3
    return rates


def _let_go(device: torch.device) -> None:
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
