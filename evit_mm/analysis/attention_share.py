"""What the share of attention layers does to the share of memory-bound time (section 2.1).

Members of a family with other shares get the width at which they are as fast as a reference, so
that they compare at equal speed. Member and reference take turns in every measurement: what the
machine does besides meets both. In the end all members take turns with it once more: a search
stops at a measurement that fits, which may have been luck.
"""

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
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
from ..benchmark.model_factory import build_subject
from ..benchmark.tables import format_table
from ..benchmark.timing import Stopwatch, Work, quartiles, take_turns
from ..engine.config import load_config
from ..errors import ConfigError, UserError
from ..models import EfficientViT
from .matching import Match, Widths, match_speed
from .members import EfficientViTMember, Member, member_of
from .results import Results
from .runtime import Step, average, build_step, must_run, profile_step, random_images, summarise

__all__ = ['analyze_proportion', 'train_a_step', 'write_arch']

_CAREFUL = 3  # times the repeats, where a measurement is to be relied on
_CHECK = (2, 3, 64, 64)  # images on which a config is tried: one alone has no batch statistics
_DEIT = 'timm://deit_tiny_patch16_224'
_REFERENCE = 'the reference'


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
    results = Results(options.out / 'proportion.json', settings, overwrite=options.overwrite,
                      wanted=members)
    images = random_images(options.batch, size, device)
    missing = [key for key in members if key not in results]
    if missing:
        with must_run(reference_name, images):
            reference = build_step(reference_name, images)
            reference()
            reference_macs = _count_macs(reference)
    for key in tqdm(missing, desc='checking', unit='member', leave=False, disable=None):
        _check(key, members[key], images, options)
    written = []
    for key, member in tqdm(members.items(), unit='member', leave=False, disable=None):
        if key in missing:
            tries = _Tries(key, member, reference, results, options)
            match = match_speed(member.ladder(), member.units, tries.speed, tries.cost,
                                reference_macs, tolerance=options.tolerance)
            results.add(key, tries.finding(match))
        if isinstance(member, EfficientViTMember):
            path = options.out / f'arch_share_{key}.py'
            write_arch(path, results[key], f'as fast as {reference_name}', options.config)
            written.append(path)
            if not results[key].get('trains'):  # an earlier run may have failed here
                train_a_step(path, torch.randn(_CHECK, device=device))
                results.add(key, {**results[key], 'trains': True})
    _repeat(members, results, reference_name, images, options)
    found = {key: results[key] for key in members}
    print(f'as fast as {reference_name} to {options.tolerance:.1%}, inference of {options.batch} x '
          f'3 x {size[0]} x {size[1]}, {settings["device"]}')
    print(_table(found))
    print(_notes(found))
    _draw(options.out / 'proportion.png', found)
    paths = [str(path) for path in (results.path, options.out / 'proportion.png', *written)]
    print(f'written: {", ".join(paths[:-1])} and {paths[-1]}')
    return found


def _check(key: str, member: Member, images: Tensor, options: Namespace) -> None:
    """Fail now if a member can't run, or its config can't be trained: the search takes long."""
    with must_run(f'the member of share {key}', images):
        Step(member.build(member.base).to(images.device), images, train=False)()
    if not options.config:
        return
    # Beside the files to come, so that what they inherit is found from here too.
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        path = Path(folder) / 'arch.py'
        layers = member.layers
        write_arch(path, {'share': layers.share, 'attention_layers': layers.attention,
                          'layers': layers.total, 'built_from': member.describe(member.base)},
                   'of widths to begin with', options.config)
        try:
            train_a_step(path, torch.randn(_CHECK, device=images.device))
        except UserError as error:
            raise UserError(f'--config {options.config} can\'t be trained with the member of share '
                            f'{key}: {error}') from error


class _Tries:
    """What the search for a member's widths measures.

    Every measurement is stored at once. A search depends on nothing but its measurements: with
    those of an interrupted one it gets to where that was.

    Args:
        key: The member's name among the results.
        member: Whose widths are searched.
        reference: What it is compared with.
        results: Where measurements are, and are stored.
        options: Of the command line.
    """

    def __init__(self, key: str, member: Member, reference: Step, results: Results,
                 options: Namespace) -> None:
        self.key, self.member, self.reference = key, member, reference
        self.results, self.options = results, options
        self._tried: dict[tuple[Widths, bool], dict[str, Any]] = {
            (tuple(found['widths']), found['careful']): found
            for found in results.partial(key) or []}

    def speed(self, widths: Widths, *, careful: bool) -> float:
        """How many times as fast as the reference these widths are."""
        if (widths, careful) not in self._tried:
            self._tried[widths, careful] = self._measure(widths, careful)
            self.results.add_partial(self.key, list(self._tried.values()))
        return float(self._tried[widths, careful]['speed'])

    def _measure(self, widths: Widths, careful: bool) -> dict[str, Any]:
        step = _step_of(self.member, widths, self.reference.images)
        speed = _race({self.key: step}, self.reference, self.options, careful=careful,
                      title=f'share {self.key}, widths {widths}')[self.key]
        return {'widths': widths, 'careful': careful, **speed}

    def cost(self, widths: Widths) -> float:
        """Multiply-adds of all images."""
        with torch.device('meta'):  # they can be counted without doing them
            return _count_macs(Step(self.member.build(widths), self.reference.images.to('meta'),
                                    train=False))

    def finding(self, match: Match) -> dict[str, Any]:
        """Profile the widths that were found, and say all of them."""
        member, images = self.member, self.reference.images
        step = _step_of(member, match.widths, images)
        step()
        profile = average([profile_step(step, images.device) for _ in range(self.options.repeats)])
        measured = self._tried[match.widths, True]
        return {
            'share': member.layers.share, 'attention_layers': member.layers.attention,
            'layers': member.layers.total, 'widths': match.widths, 'speed': match.speed,
            'speed_quartiles': measured['speed_quartiles'], 'within_tolerance': match.found,
            'tries': match.tries, 'step_ms': measured['step_ms'],
            'parameters': count_parameters([step.model]),
            'macs': self.cost(match.widths) / len(images),
            'built_from': member.describe(match.widths), **summarise(profile)}


def _step_of(member: Member, widths: Widths, images: Tensor) -> Step:
    return Step(member.build(widths).to(images.device), images, train=False)


def _race(steps: Mapping[str, Step], reference: Step, options: Namespace, *, careful: bool,
          title: str) -> dict[str, dict[str, Any]]:
    """Measure how many times as fast as the reference some steps are, by their names."""
    racers = {_REFERENCE: reference, **steps}

    def work(step: Step) -> Work:
        return {'step': lambda _: step()}

    turns = take_turns(
        {name: work(step) for name, step in racers.items()}, dict.fromkeys(racers),
        Stopwatch(reference.images.device),
        repeats=options.repeats * _CAREFUL if careful else options.repeats, seed=options.seed,
        progress=sys.stderr.isatty(), title=title)
    for name, found in turns.items():
        if found.failure:
            raise UserError(f'{title}: {name} can\'t run: {found.failure}')
    measured = {}
    for name in steps:
        speeds = [theirs / own for theirs, own in zip(
            turns[_REFERENCE].totals, turns[name].totals, strict=True)]
        measured[name] = {'speed': median(speeds), 'speed_quartiles': quartiles(speeds),
                          'step_ms': turns[name].milliseconds}
    return measured


def _repeat(members: Mapping[str, Member], results: Results, reference: str, images: Tensor,
            options: Namespace) -> None:
    """Measure all members anew, built anew, and store that as ``repeat`` of each."""
    if all('repeat' in results[key] and results[key]['repeat']['within_tolerance']
           for key in members):
        return
    steps = {key: _step_of(member, tuple(results[key]['widths']), images)
             for key, member in members.items()}
    repeated = _race(steps, build_step(reference, images), options, careful=True,
                     title='all members once more')
    for key, measured in repeated.items():
        results.add(key, {**results[key], 'repeat': {
            **measured, 'within_tolerance': abs(measured['speed'] - 1) <= options.tolerance}})


def _count_macs(step: Step) -> float:
    # torch does not count fused attention on a CPU, but does on no device.
    with sdpa_kernel(SDPBackend.MATH):
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
                  *(f'    {part}={changes!r},'
                    for part, changes in _fitting(config, finding['built_from']).items()), ')']
    try:
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror}') from error


def _fitting(path: str, arch: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in the parts behind the backbone to take its maps, by the part's name."""
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
    fitting: dict[str, Any] = {}
    for part in parts:
        usual = config.model.get(part)
        if isinstance(usual, list):
            # A list is inherited as a whole. Of necks, only the first one sees the backbone.
            whole = [one.to_dict() for one in usual]
            for one in whole[:1] if part == 'neck' else whole:
                one.update(_in_channels(one, outputs))
            fitting[part] = whole
        elif usual and (changes := _in_channels(usual, outputs)):
            fitting[part] = changes
    return fitting


def _in_channels(part: Mapping[str, Any], outputs: Sequence[int]) -> dict[str, Any]:
    """The ``in_channels`` of what sees these outputs of a backbone, if it has any."""
    usual, index = part.get('in_channels'), part.get('in_index', -1)
    if isinstance(usual, int):
        return {'in_channels': outputs[index]}
    if not usual:
        return {}
    return {'in_channels': [outputs[i] for i in index] if isinstance(index, list | tuple)
            else list(outputs)}


def train_a_step(path: Path, images: Tensor) -> float:
    """Build what a file of `write_arch` holds, as a user would, and train a step.

    Args:
        path: The file.
        images: (B, 3, H, W).

    Returns:
        float: The norm of the gradients.

    Raises:
        ConfigError: If the file holds something else.
        UserError: If the model can't be trained.
    """
    config = load_config(path)
    model = (build_subject(str(path)) if config.get('model')
             else EfficientViT(config.get('arch'), norm_eval=True))
    step = Step(model.to(images.device), images, train=True)
    with must_run(str(path), images, train=True):
        step()
    gradients = [parameter.grad.norm() for parameter in model.parameters()
                 if parameter.grad is not None]
    return float(torch.stack(gradients).norm())


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    header = ['attention layers', 'share', 'widths', 'speed', 'repeated', 'M params',
              'G multiply-adds', 'memory-bound', 'with softmax and activation']
    return format_table(header, [
        [f'{item["attention_layers"]} of {item["layers"]}', f'{item["share"]:.0%}',
         ', '.join(map(str, item['widths'])),
         *(f'{measured["speed"]:.3f}' + ' (!)' * (not measured['within_tolerance'])
           for measured in (item, item['repeat'])),
         f'{item["parameters"] / 1e6:.2f}', f'{item["macs"] / 1e9:.3f}',
         f'{100 * item["memory_bound"]:.1f}',
         f'{100 * item["memory_bound_with_softmax_and_activation"]:.1f}']
        for item in found.values()], align='lrlrrrrrr')


def _notes(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ['speed: images a second, relative to the reference; repeated: all members anew, in '
             'turns. memory-bound: share of the run time in %.']
    for key, item in found.items():
        if not item['within_tolerance']:
            lines.append(f'(!) share {key}: the best of {item["tries"]} widths that were tried; '
                         'the steps between widths are too coarse to meet the speed, or there is '
                         'no such width, or the machine is too busy')
        elif not item['repeat']['within_tolerance']:
            lines.append(f'(!) share {key}: its speed did not repeat. Leave the machine alone and '
                         'run this again, or search anew with --overwrite and more --repeats')
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
