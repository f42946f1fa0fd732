"""Measure networks in several forms at one image size."""

import gc
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError
from .flops import count_macs, count_parameters
from .forms import DTYPES, Form, PreparedModel, largest_difference, prepare
from .memory import peak_bytes, saved_bytes
from .model_factory import TIMM
from .networks import Network
from .roofline import Convolution, convolution_steps, heaviest_convolutions
from .timing import (
    OUT_OF_TIME,
    Budget,
    Steps,
    Stopwatch,
    Timings,
    failure_reason,
    run_steps,
    take_turns,
)

__all__ = ['Rate', 'Row', 'measure', 'plan']


@dataclass
class Row:
    """The figures of a network in a form, for images of one size.

    Attributes:
        model: Name of the network.
        form: The form.
        shape: Height and width of the images.
        arch: ``'m0'`` to ``'m5'`` for our backbones and timm's ports of them.
        peer: Whether the network is timm's or torchvision's.
        params: Parameters of the network as built, by part.
        macs: Multiply-adds of the network as built, by step; the same for all forms.
        timings: The times, and the failure if there is one.
        difference: Largest relative difference of the results from those of the first network
            with the same weights, eager in float32; None for that row itself.
        peak: Peak memory of a run in bytes, without weights and images; None if not measured.
        saved: Bytes saved for the backward pass; None in inference.
        floor: Milliseconds of the multiply-adds at the convolution rate; see `roofline`.
        preparation: Seconds until the row was ready to be timed, compilation included.
    """

    model: str
    form: Form
    shape: tuple[int, int]
    arch: str | None = None
    peer: bool = False
    params: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    difference: float | None = None
    peak: int | None = None
    saved: int | None = None
    floor: float | None = None
    preparation: float | None = None

    def __str__(self) -> str:
        """Return the name of the row, such as ``'m4 deploy fp32'``."""
        return f'{self.model} {self.form}'

    @property
    def failure(self) -> str | None:
        """The reason why there are no figures; None if there are."""
        return self.timings.failure


@dataclass(frozen=True)
class Rate:
    """The speed of a convolution.

    Attributes:
        convolution: The convolution.
        dtype: Its dtype, a key of `DTYPES`.
        shape: Height and width of the images of its network.
        per_second: Multiply-adds per second, from the median time.
    """

    convolution: Convolution
    dtype: str
    shape: tuple[int, int]
    per_second: float


@dataclass(frozen=True)
class _Facts:
    """Properties of a network as built, which all its forms share."""

    params: dict[str, int]
    macs: dict[str, int]
    convolutions: list[Convolution]
    results: dict[str, Tensor]


def plan(networks: Iterable[Network], forms: Iterable[Form], peer_forms: Iterable[Form],
         shape: tuple[int, int]) -> list[tuple[Row, Network]]:
    """Return the rows to measure, each with its network."""
    forms, peer_forms = list(forms), list(peer_forms)
    return [(Row(network.name, form, shape, network.arch, network.peer), network)
            for network in networks for form in (peer_forms if network.peer else forms)
            if form.name != 'fused' or network.name.startswith(TIMM)]


def measure(networks: Iterable[Network], forms: Iterable[Form], peer_forms: Iterable[Form],
            images: Tensor, *, mode: str = 'inference', repeats: int = 30, floors: bool = True,
            budget: Budget | None = None, seconds: float = math.inf, seed: int = 0,
            progress: bool = False) -> tuple[list[Row], list[Rate]]:
    """Measure all networks in all forms, which take turns with the convolutions of their floors.

    Args:
        networks: The networks, from `build_networks`.
        forms: The forms of our networks and of configs.
        peer_forms: The forms of timm's and torchvision's networks.
        images: Normalised images (B, 3, H, W), float32, on the device to run on.
        mode: ``'inference'`` or ``'train'``; see `prepare`.
        repeats: Number of timed runs of each row.
        floors: Whether to time the convolutions of the floors.
        budget: Time after which no further row is prepared.
        seconds: Time after which rows stop to take turns; see `take_turns`.
        seed: Seed of the order in which rows take turns.
        progress: Whether to show progress bars on stderr.

    Returns:
        tuple: The rows, and the rates of the convolutions. A row that fails has the reason.
    """
    # What was compiled for another size must not turn the code of this one into code for all sizes.
    torch.compiler.reset()
    # The networks share the code of their classes, of which torch.compile keeps eight versions by
    # default and then goes on uncompiled. torch.compiler.config has these two settings too, but not
    # in all releases that we support.
    with torch._dynamo.config.patch(_recompile_limit(256)):
        planned = plan(networks, forms, peer_forms, (images.shape[2], images.shape[3]))
        models, facts = _prepare_rows(planned, images, mode, floors, budget or Budget(), progress)
        rows = [row for row, _ in planned]
        rates = _time(rows, models, facts, images, repeats, seconds, seed, progress)
    del models
    _free_memory(images.device)  # a compiled module refers to itself, and a CUDA graph has a pool
    return rows, rates


def _recompile_limit(versions: int) -> dict[str, Any]:
    """Return the settings with which torch.compile keeps so many versions, or raises an error."""
    config = torch._dynamo.config
    name = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    limit = 'recompile' if name == 'recompile_limit' else 'cache'  # as torch 2.6 calls it
    return {name: max(getattr(config, name), versions), f'fail_on_{limit}_limit_hit': True}


def _prepare_rows(planned: list[tuple[Row, Network]], images: Tensor, mode: str, floors: bool,
                  budget: Budget, progress: bool
                  ) -> tuple[list[PreparedModel | None], dict[str, _Facts]]:
    """Prepare all rows, and collect what the forms of a network share."""
    models: list[PreparedModel | None] = []
    facts: dict[str, _Facts] = {}
    expected: dict[str, tuple[str, dict[str, Tensor]]] = {}
    with tqdm(total=len(planned), desc='preparing', unit='row', disable=not progress,
              leave=False) as bar:
        for row, network in planned:
            bar.set_postfix_str(str(row))
            start = time.monotonic()
            try:
                if budget.left < 0:
                    raise UserError(OUT_OF_TIME)
                if network.name not in facts:
                    facts[network.name] = _collect_facts(network, images, mode, floors)
                own = facts[network.name]
                first, results = expected.setdefault(network.weights, (network.name, own.results))
                row.params, row.macs = own.params, own.macs
                models.append(_prepare_row(row, network, images, mode, results))
                if row.form == Form() and first == network.name:
                    row.difference = None
            except Exception as error:  # the other rows go on
                models.append(None)
                row.timings.failure = failure_reason(error)
            row.preparation = time.monotonic() - start
            if row.failure:  # not above, where the error still holds the tensors of its frames
                _free_memory(images.device)
            bar.update()
    return models, facts


def _collect_facts(network: Network, images: Tensor, mode: str, floors: bool) -> _Facts:
    if network.model is None:
        raise UserError(network.failure or 'it can\'t be built')
    eager = prepare(network.model, Form(), images, mode=mode, peer=network.peer)
    return _Facts({part: count_parameters([module]) for part, module in network.model.items()},
                  count_macs(eager.steps, eager.inputs),
                  heaviest_convolutions([eager.model], eager.forward) if floors else [],
                  eager.results())


def _prepare_row(row: Row, network: Network, images: Tensor, mode: str,
                 expected: dict[str, Tensor]) -> PreparedModel:
    """Prepare the network of a row, and fill in all figures of the row but the times."""
    assert network.model is not None
    prepared = prepare(network.model, row.form, images, mode=mode, peer=network.peer)
    row.difference = largest_difference(prepared.results(), expected)
    # Gradients of an earlier step would be freed in the middle of the one that is observed.
    prepared.model.zero_grad(set_to_none=True)
    if row.form.graph:  # it allocated its memory when it was captured
        return prepared
    row.peak = peak_bytes(lambda: run_steps(prepared.steps, prepared.inputs), images.device)
    if mode == 'train':
        row.saved = saved_bytes(prepared.forward, [prepared.model])
    return prepared


def _time(rows: list[Row], models: list[PreparedModel | None], facts: dict[str, _Facts],
          images: Tensor, repeats: int, seconds: float, seed: int, progress: bool) -> list[Rate]:
    """Time all rows and the convolutions of their floors; return the rates of the latter."""
    steps: dict[str, Steps] = {}
    inputs: dict[str, Tensor | None] = {}
    for number, prepared in enumerate(models):
        if prepared is not None:
            steps[str(number)], inputs[str(number)] = prepared.steps, prepared.inputs
    convolutions = {(conv, row.form.dtype): row.shape
                    for row, prepared in zip(rows, models, strict=True) if prepared is not None
                    for conv in facts[row.model].convolutions}
    to_rate = {}
    for conv, dtype in convolutions:
        name = f'{conv} in {dtype}'
        steps[name], to_rate[conv, dtype] = convolution_steps(conv, DTYPES[dtype], images.device)
        inputs[name] = None
    timings = take_turns(steps, inputs, Stopwatch(images.device), repeats=repeats,
                         seconds=seconds, seed=seed, progress=progress,
                         title=f'{images.shape[2]}x{images.shape[3]}')
    rates = []
    for (conv, dtype), shape in convolutions.items():
        timing = timings[f'{conv} in {dtype}']
        if timing.failure is None:
            rates.append(Rate(conv, dtype, shape, to_rate[conv, dtype](timing.milliseconds)))
    for number, (row, prepared) in enumerate(zip(rows, models, strict=True)):
        if prepared is None:
            continue
        row.timings = timings[str(number)]
        own = set(facts[row.model].convolutions)
        best = max((rate.per_second for rate in rates
                    if rate.dtype == row.form.dtype and rate.convolution in own), default=None)
        if best:
            row.floor = sum(row.macs.values()) / best * 1e3
    return rates


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
