"""Parameters, multiply-adds and latency of the parts of detectors and segmentors.

The parts run one after the other, as in inference; what mmdet and mmseg do around them (resizing
logits, suppressing boxes) is left out. Several models take turns, so that a busy moment of the
machine meets all of them.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ..errors import ConfigError

__all__ = ['PartCost', 'build_for_measuring', 'measure']

PARTS = ('backbone', 'neck', 'bbox_head', 'decode_head')
"""The attributes of single-stage detectors and of segmentors that inference runs."""


@dataclass(frozen=True)
class PartCost:
    """What one part of a model costs for one input.

    Attributes:
        model: The model's name, as given.
        part: One of `PARTS`, or ``'all'`` for the whole.
        params: Number of parameters.
        macs: Multiply-adds of convolutions and matrix products; papers often call them FLOPs.
        milliseconds: Median latency.
        spread: Distance between the quartiles of the latency, in milliseconds.
    """

    model: str
    part: str
    params: int
    macs: int
    milliseconds: float
    spread: float


def build_for_measuring(model_config: Mapping) -> nn.Module:
    """Build a model in inference mode with the weights that it starts with, none downloaded.

    Raises:
        ConfigError: If the model has none of `PARTS`, or a second stage, whose cost depends on
            what the first one finds.
    """
    model: nn.Module = MODELS.build(model_config).eval()
    if not any(isinstance(getattr(model, part, None), nn.Module) for part in PARTS):
        raise ConfigError(f'{type(model).__name__} has none of the parts {", ".join(PARTS)}')
    if hasattr(model, 'roi_head'):
        raise ConfigError(f'{type(model).__name__} has a second stage, whose cost depends on the '
                          'first one\'s proposals: measure single-stage detectors or segmentors')
    return model


def measure(models: Mapping[str, nn.Module], inputs: Tensor, *, repeats: int = 30, warm_up: int = 3,
            progress: bool = True) -> list[PartCost]:
    """Measure models on one input, taking turns.

    Args:
        models: Single-stage detectors or segmentors in inference mode, by name.
        inputs: Normalised images (B, 3, H, W), on the models' device.
        repeats: Runs of each model that count.
        warm_up: Runs of each model before those.
        progress: Show a progress bar on stderr.

    Returns:
        list[PartCost]: The parts of each model in the order of `PARTS`, then the whole.
    """
    times: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for turn in tqdm(range(warm_up + repeats), unit='round', disable=not progress, leave=False):
        for name, model in models.items():
            spent = {part: seconds for part, _, seconds in _run(model, inputs)}
            spent['all'] = sum(spent.values())
            for part, seconds in spent.items() if turn >= warm_up else ():
                times[name].setdefault(part, []).append(seconds * 1e3)
    costs = []
    for name, model in models.items():
        macs = _count_macs(model, inputs)
        params = {part: sum(parameter.numel() for parameter in module.parameters())
                  for part, module in _parts(model).items()}
        for part in (*macs, 'all'):
            costs.append(PartCost(
                name, part, params.get(part, sum(params.values())),
                macs.get(part, sum(macs.values())), median(times[name][part]),
                _quartile_distance(times[name][part])))
    return costs


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    found = {part: getattr(model, part, None) for part in PARTS}
    return {part: module for part, module in found.items() if isinstance(module, nn.Module)}


def _run(model: nn.Module, inputs: Tensor) -> Iterator[tuple[str, Any, float]]:
    """Run the parts one after the other; yields each one's name, output and seconds."""
    x: Any = inputs
    for part, module in _parts(model).items():
        with torch.inference_mode():
            started = _now(inputs)
            x = module(x)
            yield part, x, _now(inputs) - started


def _now(inputs: Tensor) -> float:
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
    return time.perf_counter()


def _count_macs(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    macs, before = {}, 0
    with FlopCounterMode(display=False) as counter:
        for part, _, _ in _run(model, inputs):
            macs[part] = counter.get_total_flops() // 2 - before
            before += macs[part]
    return macs


def _quartile_distance(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    first, _, third = quantiles(values, n=4)
    return third - first
