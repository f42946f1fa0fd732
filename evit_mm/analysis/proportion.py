"""What the share of attention layers does to the share of memory-bound time (section 2.1).

Members of a family with other shares get the width at which they are as fast as a reference, so
that they compare at equal speed. Member and reference take turns in every measurement: what the
machine does besides meets both.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.configure import load_config
from ..errors import ConfigError, UserError
from ..models import EfficientViT
from . import machine
from .cost import count_macs, count_parameters
from .figures import PALETTE, drawing
from .matching import Widths, match_speed
from .members import EfficientViTMember, Member, member_of
from .results import Results
from .runtime import Step, average, build_step, profile_step, summarise
from .subjects import build_subject
from .tables import format_table
from .timing import Stopwatch, Turns, quartiles, take_turns

__all__ = ['analyze_proportion', 'train_a_step', 'write_arch']

_CAREFUL = 3  # times the repeats, where a measurement is to be relied on
_DEIT = 'timm://deit_tiny_patch16_224'


def analyze_proportion(options: Namespace) -> dict[str, Any]:
    """Match the members of a family to the reference, profile them, and show what came out.

    Args:
        options: What the sub-parser ``proportion`` of `evit_mm.cli.analyze` parses.

    Returns:
        dict: What was found of each member, by its share as in ``'0.27'``.

    Raises:
        UserError: If an option, the reference, the config or the device can't be used.
    """
    for flag, number in (('--shape', min(options.shape)), ('--batch', options.batch),
                         ('--repeats', options.repeats)):
        if number < 1:
            raise UserError(f'{flag} must be positive, got {number}')
    if not 0 < options.tolerance < 1:
        raise UserError(f'--tolerance must be between 0 and 1, got {options.tolerance}')
    if options.config and options.family == 'deit':
        raise UserError('--config writes configs of our backbone, but --family deit is not ours')
    size = tuple(options.shape)
    # Members of the same layers count once; a mistake shows before the work.
    members = {f'{member.layers.share:.2f}': member for member in (
        member_of(options.family, share, size) for share in sorted(options.shares))}
    if options.config:
        for member in members.values():
            _fitting(options.config, member.describe(member.base))
    device = machine.use(options.device, threads=options.threads, seed=options.seed)
    reference_name = options.reference or (_DEIT if options.family == 'deit' else options.family)
    settings = {
        'family': options.family, 'reference': reference_name, 'shape': size,
        'batch': options.batch, 'tolerance': options.tolerance, 'repeats': options.repeats,
        'config': options.config, 'seed': options.seed, 'device': machine.describe(device),
        'torch': torch.__version__}
    results = Results(options.out / 'proportion.json', settings, overwrite=options.overwrite)
    images = torch.randn(options.batch, 3, *size, device=device)
    reference = build_step(reference_name, images)
    for key, member in tqdm(members.items(), unit='member', leave=False, disable=None):
        if key not in results:
            results.add(key, _matched(key, member, reference, options))
    found = {key: results[key] for key in members}
    print(f'as fast as {reference_name} to {options.tolerance:.1%}, inference of {options.batch} x '
          f'3 x {size[0]} x {size[1]}, {settings["device"]}')
    print(_table(found))
    print(_notes(found))
    _draw(options.out / 'proportion.png', found)
    print(f'written: {results.path}, {options.out / "proportion.png"}'
          + f' and {options.out / "arch_share_*.py"}' * (options.family != 'deit'))
    return found


def _matched(key: str, member: Member, reference: Step, options: Namespace) -> dict[str, Any]:
    """Find the widths of a member, profile it, and write its ``arch``."""
    images, repeats = reference.images, options.repeats
    measured: dict[Widths, Turns] = {}
    paired: dict[Widths, list[float]] = {}

    def speed(widths: Widths, *, careful: bool) -> float:
        step = Step(member.build(widths).to(images.device), images, train=False)
        turns = take_turns(
            {'reference': {'step': lambda _: reference()}, 'member': {'step': lambda _: step()}},
            {'reference': None, 'member': None}, Stopwatch(images.device),
            repeats=repeats * _CAREFUL if careful else repeats, seed=options.seed,
            progress=sys.stderr.isatty(), title=f'share {key}, widths {widths}')
        for name, found in turns.items():
            if found.failure:
                raise UserError(f'the {name} of widths {widths} can\'t run: {found.failure}')
        measured[widths] = turns['member']
        paired[widths] = [theirs / own for theirs, own in zip(
            turns['reference'].totals, turns['member'].totals, strict=True)]
        return median(paired[widths])

    def cost(widths: Widths) -> float:
        with torch.device('meta'):  # multiply-adds can be counted without doing them
            return _count_macs(Step(member.build(widths), images.to('meta'), train=False))

    match = match_speed(member.ladder(), member.units, speed, cost, _count_macs(reference),
                        tolerance=options.tolerance)
    model = member.build(match.widths).to(images.device)
    step = Step(model, images, train=False)
    step()
    profile = average([profile_step(step, images.device) for _ in range(repeats)])
    finding = {
        'share': member.layers.share, 'attention_layers': member.layers.attention,
        'layers': member.layers.total, 'widths': match.widths, 'speed': match.speed,
        'speed_quartiles': quartiles(paired[match.widths]), 'within_tolerance': match.found,
        'tries': match.tries, 'step_ms': measured[match.widths].milliseconds,
        'parameters': count_parameters([model]), 'macs': cost(match.widths) / len(images),
        'built_from': member.describe(match.widths), **summarise(profile)}
    if isinstance(member, EfficientViTMember):
        path = options.out / f'arch_share_{key}.py'
        write_arch(path, finding, f'as fast as {options.reference or options.family}',
                   options.config)
        train_a_step(path, images[:2])
    return finding


def _count_macs(step: Step) -> float:
    return count_macs({'step': lambda _: step()}, None)['step']


def write_arch(path: Path, finding: Mapping[str, Any], speed: str,
               config: str | None = None) -> None:
    """Write a member's ``arch`` as a file that configs can inherit, or as a whole config.

    Args:
        path: The file.
        finding: What `analyze_proportion` found of the member.
        speed: What the member is as fast as, in words.
        config: A config whose model has our backbone; then the file is this config with the
            member in place of its backbone.

    Raises:
        UserError: If the config has no such backbone, or the file can't be written.
    """
    lines = [f'"""EfficientViT with {finding["share"]:.0%} attention layers '
             f'({finding["attention_layers"]} of {finding["layers"]}), {speed}.',
             '', 'Written by tools/analyze.py proportion.']
    if config:
        lines += ['', f'    tools/train.py {path} --from-scratch']
    lines += ['"""', '']
    if config:
        lines += [f'_base_ = {os.path.relpath(config, path.parent)!r}', '']
    lines += ['arch = dict(', *(f'    {field}={value!r},'
                                for field, value in finding['built_from'].items()), ')']
    if config:
        lines += ['model = dict(',
                  '    backbone=dict(arch=dict(_delete_=True, **arch), init_cfg=None),',
                  *(f'    {part}=dict(in_channels={channels}),'
                    for part, channels in _fitting(config, finding['built_from']).items()), ')']
    try:
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror}') from error


def _fitting(path: str, arch: Mapping[str, Any]) -> dict[str, list[int] | int]:
    """The ``in_channels`` that the parts behind the backbone need, by the part's name."""
    config = load_config(path)
    backbone = config.get('model', {}).get('backbone') or {}
    if backbone.get('type') != 'EfficientViT':
        raise ConfigError(f'{path}: its model has no EfficientViT as its backbone, so it can\'t '
                          'take a member of this family')
    outputs = EfficientViT(**{
        **{key: value for key, value in backbone.items() if key != 'type'},
        'arch': arch, 'init_cfg': None}).out_channels
    # Heads of a detector see the neck's channels, those of a segmentor without one the backbone's.
    parts = ['neck'] if config.model.get('neck') else ['decode_head', 'auxiliary_head']
    fitting: dict[str, list[int] | int] = {}
    for part in parts:
        usual = (config.model.get(part) or {}).get('in_channels')
        if isinstance(usual, int):
            fitting[part] = outputs[config.model[part].get('in_index', -1)]
        elif usual:
            fitting[part] = list(outputs)
    return fitting


def train_a_step(path: Path, images: Tensor) -> float:
    """Build what a file of `write_arch` holds, as a user would, and train a step.

    Args:
        path: The file.
        images: (B, 3, H, W).

    Returns:
        float: The norm of the gradients.

    Raises:
        ConfigError: If the file holds something else.
    """
    config = load_config(path)
    model = (build_subject(str(path)) if config.get('model')
             else EfficientViT(config.get('arch'), norm_eval=True))
    step = Step(model.to(images.device), images, train=True)
    step()
    gradients = [parameter.grad.norm() for parameter in model.parameters()
                 if parameter.grad is not None]
    return float(torch.stack(gradients).norm())


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    header = ['attention layers', 'share', 'widths', 'speed', 'M params', 'G multiply-adds',
              'memory-bound', 'with softmax and activation']
    return format_table(header, [
        [f'{item["attention_layers"]} of {item["layers"]}', f'{item["share"]:.0%}',
         ', '.join(map(str, item['widths'])),
         f'{item["speed"]:.3f}' + ' (!)' * (not item['within_tolerance']),
         f'{item["parameters"] / 1e6:.2f}', f'{item["macs"] / 1e9:.3f}',
         f'{100 * item["memory_bound"]:.1f}',
         f'{100 * item["memory_bound_with_softmax_and_activation"]:.1f}']
        for item in found.values()], align='lrlrrrrr')


def _notes(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ['speed: images a second, relative to the reference. memory-bound: share of the run '
             'time in %.']
    for key, item in found.items():
        if not item['within_tolerance']:
            lines.append(f'(!) share {key}: the best of {item["tries"]} widths that were tried; '
                         'the steps between widths are too coarse to meet the speed, or there is '
                         'no such width, or the machine is too busy')
    return '\n'.join(lines)


def _draw(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    shares = [100 * item['share'] for item in found.values()]
    with drawing(path, height=2.3) as figure:
        axes = figure.subplots()
        for key, label, colour, marker in (
                ('memory_bound', 'memory-bound', 'vermilion', 'o'),
                ('memory_bound_with_softmax_and_activation', 'with softmax and activation',
                 'green', 's')):
            axes.plot(shares, [100 * item[key] for item in found.values()], marker=marker,
                      color=PALETTE[colour], label=label)
        axes.set_xlabel('share of attention layers (%)')
        axes.set_ylabel('share of the run time (%)')
        axes.set_xlim(-3, 103)
        axes.set_ylim(bottom=0)
        axes.grid(axis='y')
        figure.legend(loc='outside upper center', ncols=2)
