"""What tools/benchmark.py does: build configs and variations of them, measure, print a table."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import nn

from ..engine.configure import load_config, without_pretrained_weights
from ..errors import ConfigError, UserError
from .cost import PartCost, build_for_measuring, measure

__all__ = ['benchmark', 'format_table']


def benchmark(options: Namespace) -> list[PartCost]:
    """Measure what ``options`` name; see `evit_mm.cli.benchmark_parser`.

    Raises:
        UserError: If a config or an option can't be used.
    """
    height, width = options.shape
    for name, number in (('--shape', min(options.shape)), ('--batch', options.batch),
                         ('--repeats', options.repeats), ('--threads', options.threads or 1)):
        if number < 1:
            raise UserError(f'{name} must be positive, got {number}')
    if options.json and not options.json.absolute().parent.is_dir():
        raise UserError(f'--json {options.json}: there is no folder {options.json.parent}')
    if options.threads:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    models = {name: model.to(device) for name, model in _models(options).items()}
    torch.manual_seed(0)
    inputs = torch.randn(options.batch, 3, height, width, device=device)
    costs = measure(models, inputs, repeats=options.repeats, progress=sys.stderr.isatty())
    print(f'{options.batch} x 3 x {height} x {width}, {_place(device)}, median of '
          f'{options.repeats} interleaved runs')
    print(format_table(costs))
    if options.json:
        options.json.write_text(json.dumps([vars(cost) for cost in costs], indent=1) + '\n')
    return costs


def format_table(costs: list[PartCost]) -> str:
    """A Markdown table of costs; a part's share of arithmetic is relative to the backbone's."""
    backbones = {cost.model: cost.macs for cost in costs if cost.part == 'backbone'}
    rows = ['| model | part | parameters (M) | multiply-adds (G) | x backbone | ms | ± |',
            '|---|---|---|---|---|---|---|']
    for cost in costs:
        ratio = cost.macs / backbones[cost.model] if backbones.get(cost.model) else float('nan')
        rows.append(f'| {cost.model} | {cost.part} | {cost.params / 1e6:.2f} | '
                    f'{cost.macs / 1e9:.2f} | {ratio:.2f} | {cost.milliseconds:.1f} | '
                    f'{cost.spread / 2:.1f} |')
    return '\n'.join(rows)


def _models(options: Namespace) -> dict[str, nn.Module]:
    wanted: dict[str, tuple[Path, dict[str, Any]]] = {
        path.stem: (path, {}) for path in options.configs}
    if options.variant and len(options.configs) > 1:
        raise UserError('--variant varies one config, but several are given')
    for name, changes in options.variant or ():
        wanted[name] = (options.configs[0], changes)
    return {name: _built(path, {**(options.cfg_options or {}), **changes})
            for name, (path, changes) in wanted.items()}


def _built(path: Path, changes: dict[str, Any]) -> nn.Module:
    config = load_config(path, changes)
    if not config.get('model'):
        raise ConfigError(f'{path} has no model')
    init_default_scope(config.get('default_scope', 'mmengine'))
    without_pretrained_weights(config)
    try:
        return build_for_measuring(config.model)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f'the model of {path} can\'t be built: {type(error).__name__}: '
                          f'{" ".join(str(error).split())}') from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {name}: {str(error).splitlines()[0]}') from error
    return device


def _place(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{device.type}, {torch.get_num_threads()} threads'
