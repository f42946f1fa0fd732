"""Effect of the share of attention layers on the memory-bound share of time (section 2.1).

For members of a family with other shares of attention layers, this analysis searches the widths at
which they are as fast as a reference, so that they are compared at equal speed. In every
measurement member and reference take turns, so that a busy machine slows both. At the end all
members are measured once more in turns with the reference, because a search stops at a matching
measurement, which may have been luck.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ..benchmark import machine
from ..benchmark.figures import PALETTE, drawing
from ..benchmark.flops import count_macs, count_parameters
from ..benchmark.model_factory import build_model
from ..benchmark.tables import format_table
from ..benchmark.timing import Steps, Stopwatch, quartiles, take_turns
from ..engine.config import load_config
from ..errors import UserError
from ..models import EfficientViT
from .arch_file import changed_in_channels, write_arch
from .matching import Match, Widths, match_speed
from .members import EfficientViTMember, Member, build_member
from .results import Results
from .runtime import (
    Step,
    average,
    build_step,
    profile_step,
    random_images,
    summarize,
    translate_run_errors,
)

__all__ = ['analyze_attention_share', 'train_one_step', 'write_member']

_CAREFUL_FACTOR = 3  # times as many repeats for measurements that decide
_CHECK_SHAPE = (2, 3, 64, 64)  # images for trying a config: batch statistics need more than one
_DEIT = 'timm://deit_tiny_patch16_224'
_REFERENCE = 'the reference'


@dataclass(frozen=True)
class _Conditions:
    """Settings of all measurements of a run.

    Attributes:
        images: Input of all models, on the device.
        repeats: Rounds of a quick measurement.
        tolerance: Accepted difference of a relative speed from 1.
        seed: Random seed of the order in which models take turns.
    """

    images: Tensor
    repeats: int
    tolerance: float
    seed: int


def analyze_attention_share(
        family: str = 'm4', *, shares: Sequence[float] = (0, 0.2, 0.27, 0.4, 0.5, 0.6, 1),
        reference: str | None = None, tolerance: float = 0.02, shape: Sequence[int] = (224, 224),
        batch: int = 8, repeats: int = 15, config: str | os.PathLike[str] | None = None,
        out: str | os.PathLike[str] = 'work_dirs/analysis/proportion', overwrite: bool = False,
        device: str = 'cpu', threads: int | None = None, seed: int = 0
        ) -> dict[str, dict[str, Any]]:
    """Compare members of a family at equal speed, print a table, and write the results.

    Writes ``proportion.json``, ``proportion.png`` and, for families of EfficientViT, a file
    ``arch_share_SHARE.py`` for each member.

    Args:
        family: ``'m0'`` to ``'m5'``, whose depths and layers per block vary, or ``'deit'``:
            classifiers with the 24 layers of DeiT-T.
        shares: Shares of attention layers, 0 to 1; the closest possible with whole layers is used.
        reference: Model that sets the speed, as in `analyze_runtime`; by default the family's own
            model, and timm's DeiT-T for ``'deit'``.
        tolerance: Accepted difference from the reference's speed, as a share.
        shape: Height and width of the images.
        batch: Images per step.
        repeats: Rounds of a measurement; three times as many confirm it.
        config: A config with an EfficientViT backbone. The files are then whole configs: this one
            with a member as its backbone.
        out: Folder of the results; those of an earlier run with the same settings are reused.
        overwrite: Discard the results of an earlier run.
        device: Device name, as in torch.
        threads: Number of CPU threads; torch's default if None.
        seed: Random seed.

    Returns:
        dict: Results of each member, by its share with two digits, as in ``'0.27'``.

    Raises:
        UserError: If an argument, the reference, the config or the device can't be used.
    """
    for flag, number in (('--shape', min(shape)), ('--batch', batch), ('--repeats', repeats)):
        if number < 1:
            raise UserError(f'{flag} must be positive, got {number}')
    if not 0 < tolerance < 1:
        raise UserError(f'--tolerance must be between 0 and 1, got {tolerance}')
    if config and family == 'deit':
        raise UserError('--config takes members of EfficientViT, but --family deit has none')
    size, out = (shape[0], shape[1]), Path(out)
    # Shares that give the same layers are one member.
    members = {f'{member.layers.share:.2f}': member for member in (
        build_member(family, share, size) for share in sorted(shares))}
    if config:  # report a mistake before the work
        for member in members.values():
            changed_in_channels(config, member.describe(member.base))
    torch_device = machine.use(device, threads=threads, seed=seed)
    device_name = machine.describe(torch_device)
    reference = reference or (_DEIT if family == 'deit' else family)
    results = Results(out / 'proportion.json', {
        'family': family, 'reference': reference, 'shape': size, 'batch': batch,
        'tolerance': tolerance, 'repeats': repeats, 'config': config, 'seed': seed,
        'device': device_name, 'torch': torch.__version__}, overwrite=overwrite, names=members)
    conditions = _Conditions(random_images(batch, size, torch_device), repeats, tolerance, seed)
    missing = [key for key in members if key not in results]
    if missing:
        reference_step = _build_reference(reference, conditions.images)
        reference_macs = _count_macs(reference_step)
    for key in tqdm(missing, desc='checking', unit='member', leave=False, disable=None):
        _check_member(key, members[key], conditions.images, out, config)
    paths = [results.path, out / 'proportion.png']
    for key, member in tqdm(members.items(), unit='member', leave=False, disable=None):
        if key in missing:
            search = _Search(key, member, reference_step, results, conditions)
            match = match_speed(member.ladder(), member.units, search.speed, search.cost,
                                reference_macs, tolerance=tolerance)
            results.add(key, search.result(match))
        if isinstance(member, EfficientViTMember):
            path = out / f'arch_share_{key}.py'
            write_member(path, results[key], f'as fast as {reference}', config)
            paths.append(path)
            if not results[key].get('trains'):  # not yet checked, or failed in an earlier run
                train_one_step(path, torch.randn(_CHECK_SHAPE, device=torch_device))
                results.add(key, {**results[key], 'trains': True})
    _repeat(members, results, reference, conditions)
    items = {key: results[key] for key in members}
    print(f'as fast as {reference} to {tolerance:.1%}, inference of {batch} x 3 x {size[0]} x '
          f'{size[1]}, {device_name}')
    print(_table(items))
    print(_notes(items))
    _draw(out / 'proportion.png', items)
    print(f'written: {", ".join(map(str, paths[:-1]))} and {paths[-1]}')
    return items


def _build_reference(name: str, images: Tensor) -> Step:
    with translate_run_errors(name, images):
        step = build_step(name, images)
        step()
    return step


def _check_member(key: str, member: Member, images: Tensor, out: Path,
                  config: str | os.PathLike[str] | None) -> None:
    """Check that a member runs, and that its config trains, before the long search."""
    with translate_run_errors(f'the member of share {key}', images):
        Step(member.build(member.base).to(images.device), images, train=False)()
    if not config:
        return
    # Next to the final files, so that relative paths of base configs are the same.
    with tempfile.TemporaryDirectory(dir=out) as folder:
        path = Path(folder) / 'arch.py'
        layers = member.layers
        write_member(path, {'share': layers.share, 'attention_layers': layers.attention,
                            'layers': layers.total, 'built_from': member.describe(member.base)},
                     'with the widths from which the search starts', config)
        try:
            train_one_step(path, torch.randn(_CHECK_SHAPE, device=images.device))
        except UserError as error:
            raise UserError(f'--config {config} can\'t be trained with the member of share {key}: '
                            f'{error}') from error


class _Search:
    """Measurements of the search for a member's widths.

    Every measurement is stored at once. A search is determined by its measurements, so an
    interrupted one reaches the same point again by reading them.

    Args:
        key: The member's name among the results.
        member: The member.
        reference: The step that sets the speed.
        results: Storage of the measurements.
        conditions: Settings of the measurements.
    """

    def __init__(self, key: str, member: Member, reference: Step, results: Results,
                 conditions: _Conditions) -> None:
        self.key, self.member, self.reference = key, member, reference
        self.results, self.conditions = results, conditions
        self._measurements: dict[tuple[Widths, bool], dict[str, Any]] = {
            (tuple(measurement['widths']), measurement['careful']): measurement
            for measurement in results.partial(key) or []}

    def speed(self, widths: Widths, *, careful: bool) -> float:
        """Return the speed of these widths, relative to the reference."""
        if (widths, careful) not in self._measurements:
            step = _build_member_step(self.member, widths, self.conditions)
            speed = _race({self.key: step}, self.reference, self.conditions, careful=careful,
                          title=f'share {self.key}, widths {widths}')[self.key]
            self._measurements[widths, careful] = {'widths': widths, 'careful': careful, **speed}
            self.results.add_partial(self.key, list(self._measurements.values()))
        return float(self._measurements[widths, careful]['speed'])

    def cost(self, widths: Widths) -> float:
        """Return the multiply-adds of all images."""
        with torch.device('meta'):  # counts without computing
            return _count_macs(Step(self.member.build(widths), self.conditions.images.to('meta'),
                                    train=False))

    def result(self, match: Match) -> dict[str, Any]:
        """Profile the widths that the search ended with, and return the member's result."""
        member, images = self.member, self.conditions.images
        step = _build_member_step(member, match.widths, self.conditions)
        step()
        profile = average([profile_step(step, images.device)
                           for _ in range(self.conditions.repeats)])
        measurement = self._measurements[match.widths, True]
        return {
            'share': member.layers.share, 'attention_layers': member.layers.attention,
            'layers': member.layers.total, 'widths': match.widths, 'speed': match.speed,
            'speed_quartiles': measurement['speed_quartiles'],
            'within_tolerance': match.within_tolerance, 'tries': match.tries,
            'step_ms': measurement['step_ms'], 'parameters': count_parameters([step.model]),
            'macs': self.cost(match.widths) / len(images),
            'built_from': member.describe(match.widths), **summarize(profile)}


def _build_member_step(member: Member, widths: Widths, conditions: _Conditions) -> Step:
    images = conditions.images
    return Step(member.build(widths).to(images.device), images, train=False)


def _race(steps: Mapping[str, Step], reference: Step, conditions: _Conditions, *, careful: bool,
          title: str) -> dict[str, dict[str, Any]]:
    """Measure the speed of steps relative to the reference, by their names."""
    racers = {_REFERENCE: reference, **steps}

    def work(step: Step) -> Steps:
        return {'step': lambda _: step()}

    turns = take_turns(
        {name: work(step) for name, step in racers.items()}, dict.fromkeys(racers),
        Stopwatch(conditions.images.device),
        repeats=conditions.repeats * _CAREFUL_FACTOR if careful else conditions.repeats,
        seed=conditions.seed, progress=sys.stderr.isatty(), title=title)
    for name, turn in turns.items():
        if turn.failure:
            raise UserError(f'{title}: {name} can\'t run: {turn.failure}')
    measurements = {}
    for name in steps:
        speeds = [reference_time / own_time for reference_time, own_time in zip(
            turns[_REFERENCE].totals, turns[name].totals, strict=True)]
        measurements[name] = {'speed': median(speeds), 'speed_quartiles': quartiles(speeds),
                              'step_ms': turns[name].milliseconds}
    return measurements


def _repeat(members: Mapping[str, Member], results: Results, reference: str,
            conditions: _Conditions) -> None:
    """Build and measure all members anew, and store that as ``repeat`` of each result."""
    if all('repeat' in results[key] and results[key]['repeat']['within_tolerance']
           for key in members):
        return
    steps = {key: _build_member_step(member, tuple(results[key]['widths']), conditions)
             for key, member in members.items()}
    repeated = _race(steps, build_step(reference, conditions.images), conditions, careful=True,
                     title='all members once more')
    for key, measurement in repeated.items():
        within_tolerance = abs(measurement['speed'] - 1) <= conditions.tolerance
        results.add(key, {**results[key], 'repeat': {
            **measurement, 'within_tolerance': within_tolerance}})


def _count_macs(step: Step) -> float:
    # torch does not count fused attention on the CPU and on the meta device.
    with sdpa_kernel(SDPBackend.MATH):
        return count_macs({'step': lambda _: step()}, None)['step']


def write_member(path: Path, result: Mapping[str, Any], description: str,
                 config: str | os.PathLike[str] | None = None) -> None:
    """Write a member's architecture as a file that configs can inherit, or as a whole config.

    Args:
        path: The .py file.
        result: The member's result of `analyze_attention_share`.
        description: Further text for the first line of the file.
        config: A config with an EfficientViT backbone; the file is then this config with the
            member as its backbone.

    Raises:
        UserError: If the config has no such backbone, or the file can't be written.
    """
    parts = changed_in_channels(config, result['built_from']) if config else None
    write_arch(path, result['built_from'],
               f'EfficientViT with {result["share"]:.0%} attention layers '
               f'({result["attention_layers"]} of {result["layers"]}), {description}.\n\n'
               'Written by tools/analyze.py proportion.\n', config=config, parts=parts)


def train_one_step(path: Path, images: Tensor) -> float:
    """Build the model of a file of `write_member`, and train it for one step.

    Args:
        path: The file.
        images: (B, 3, H, W).

    Returns:
        float: Norm of the gradients.

    Raises:
        ConfigError: If the model can't be built.
        UserError: If the model can't be trained.
    """
    config = load_config(path)
    model = (build_model(str(path)) if config.get('model')
             else EfficientViT(config.get('arch'), norm_eval=True))
    step = Step(model.to(images.device), images, train=True)
    with translate_run_errors(str(path), images, train=True):
        step()
    gradients = [parameter.grad.norm() for parameter in model.parameters()
                 if parameter.grad is not None]
    return float(torch.stack(gradients).norm())


def _table(items: Mapping[str, Mapping[str, Any]]) -> str:
    header = ['attention layers', 'share', 'widths', 'speed', 'repeated', 'M params',
              'G multiply-adds', 'memory-bound', 'with softmax and activation']
    return format_table(header, [
        [f'{item["attention_layers"]} of {item["layers"]}', f'{item["share"]:.0%}',
         ', '.join(map(str, item['widths'])),
         *(f'{measurement["speed"]:.3f}' + ' (!)' * (not measurement['within_tolerance'])
           for measurement in (item, item['repeat'])),
         f'{item["parameters"] / 1e6:.2f}', f'{item["macs"] / 1e9:.3f}',
         f'{100 * item["memory_bound"]:.1f}',
         f'{100 * item["memory_bound_with_softmax_and_activation"]:.1f}']
        for item in items.values()], align='lrlrrrrrr')


def _notes(items: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ['speed: images per second, relative to the reference; repeated: all members measured '
             'anew, in turns. memory-bound: share of the run time in %.']
    for key, item in items.items():
        if not item['within_tolerance']:
            lines.append(f'(!) share {key}: the best of {item["tries"]} widths misses the speed: '
                         'the steps between widths are too coarse, no width is as fast, or the '
                         'machine is too busy')
        elif not item['repeat']['within_tolerance']:
            lines.append(f'(!) share {key}: its speed did not repeat. Run this again on an idle '
                         'machine, or search anew with --overwrite and more --repeats')
    return '\n'.join(lines)


def _draw(path: Path, items: Mapping[str, Mapping[str, Any]]) -> None:
    shares = [100 * item['share'] for item in items.values()]
    with drawing(path, height=2.3) as figure:
        axes = figure.subplots()
        for key, label, colour, marker in (
                ('memory_bound', 'memory-bound', 'vermilion', 'o'),
                ('memory_bound_with_softmax_and_activation', 'with softmax and activation',
                 'green', 's')):
            axes.plot(shares, [100 * item[key] for item in items.values()], marker=marker,
                      color=PALETTE[colour], label=label)
        axes.set_xlabel('share of attention layers (%)')
        axes.set_ylabel('share of the run time (%)')
        axes.set_xlim(-3, 103)
        axes.set_ylim(bottom=0)
        axes.grid(axis='y')
        figure.legend(loc='outside upper center', ncols=2)
