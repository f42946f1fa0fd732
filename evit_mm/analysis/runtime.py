"""Where a model's time goes, by kind of operation (section 2.1 of the paper).

The times are self times of torch.profiler: of an operation without those that it calls, so that
they add up to the whole. On a GPU they are the kernels' times. What the profiler itself costs makes
small operations look larger than they are, in all models alike.
"""

import os
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from ..benchmark import machine
from ..benchmark.figures import HALF_PAGE, PALETTE, drawing
from ..benchmark.model_factory import TIMM, build_subject, is_config, short_names, split_form
from ..benchmark.tables import format_table
from ..benchmark.timing import must_work
from ..deployment.fuse import deploy
from ..errors import ConfigError, UserError
from .operations import ADD, COMPUTE, COPY, KINDS, MEMORY_BOUND, NORM, OTHER, SOFTMAX, classify
from .results import Results

__all__ = ['Profile', 'Step', 'analyze_runtime', 'average', 'build_step', 'must_run',
           'profile_step', 'random_images', 'summarise']

COLOURS = {COMPUTE: PALETTE['blue'], COPY: PALETTE['vermilion'], ADD: PALETTE['orange'],
           NORM: PALETTE['yellow'], SOFTMAX: PALETTE['green'], OTHER: PALETTE['grey']}

_WARM_UP = 2
_LISTED = 30  # operations of a model in the JSON file: all but what is lost in the noise


class Step:
    """One inference, or one training step: forward and backward pass, without the optimizer.

    The loss of a training step is the mean square of each output, summed: what a model's own loss
    costs depends on its data. Parts without an output of their own, such as the head that proposes
    a two-stage detector's regions, then run forward only.

    Args:
        model: On its device. A detector or segmentor runs up to its head's raw outputs.
        images: (B, 3, H, W) on the same device.
        train: Whether to train; switches the model.
    """

    def __init__(self, model: nn.Module, images: Tensor, *, train: bool) -> None:
        self.model = model.train(train)
        self.images = images
        self.train = train
        self._arguments = _arguments(model, images)

    def __call__(self) -> None:
        """Run, and wait until the device is done.

        Raises:
            ValueError: If there is nothing to train.
        """
        if self.train:
            self.model.zero_grad(set_to_none=True)
            outputs = _tensors(self.model(self.images, **self._arguments))
            if not outputs:
                raise ValueError('none of its outputs can be trained')
            torch.stack([output.square().mean() for output in outputs]).sum().backward()
        else:
            with torch.inference_mode():
                self.model(self.images, **self._arguments)
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)


def _arguments(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """What a model is called with besides the images."""
    if not isinstance(model, BaseModel):
        return {}
    # By name: mmdet, which segmentation does without, is imported for its own models alone.
    if not any(kind.__module__.startswith('mmdet.') for kind in type(model).__mro__):
        return {'mode': 'tensor'}
    from mmdet.structures import DetDataSample

    # Detectors of two stages clip the regions that they propose to the image.
    size = tuple(images.shape[-2:])
    sample = {'img_shape': size, 'ori_shape': size, 'pad_shape': size, 'batch_input_shape': size,
              'scale_factor': (1.0, 1.0)}
    return {'mode': 'tensor', 'data_samples': [DetDataSample(metainfo=sample) for _ in images]}


def random_images(number: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Make images to run models on, (number, 3, *shape).

    Raises:
        UserError: If the device has too little memory for them.
    """
    size = 'x'.join(map(str, shape))
    with must_work(f'there can\'t be {number} images of {size}', device):
        return torch.randn(number, 3, *shape, device=device)


@contextmanager
def must_run(name: str, images: Tensor, *, train: bool = False) -> Iterator[None]:
    """Turn every error of a model that runs within into a sentence.

    Args:
        name: Of the model.
        images: What it is given.
        train: Whether it is trained.

    Raises:
        UserError: If the model can't run.
    """
    with must_work(f'{name} can\'t run on {tuple(images.shape)} in '
                   f'{"training" if train else "inference"}', images.device):
        yield


@dataclass(frozen=True)
class Profile:
    """Self times of a step.

    Attributes:
        times: Milliseconds by (kind, operation).
        total: What the profiler adds up itself, in milliseconds.
    """

    times: Mapping[tuple[str, str], float]
    total: float

    @classmethod
    def of(cls, events: Sequence[FunctionEvent], *, on_device: bool = False) -> 'Profile':
        """Sort the events of a profiler by kind.

        Args:
            events: What `torch.profiler.profile.events` returns.
            on_device: Count the time of kernels, not that of the processor which starts them.
        """
        times: dict[tuple[str, str], float] = defaultdict(float)
        if not on_device:
            for event in events:
                times[classify(_stack(event)), event.name] += event.self_cpu_time_total / 1e3
            return cls(times, sum(event.self_cpu_time_total for event in events) / 1e3)
        # A kernel has the kind of the operation that started it. Kernels of compiled code may
        # have none, and count by their own names.
        total, orphans = 0.0, Counter[tuple[str, float]]()
        for event in events:
            if event.device_type != torch.autograd.DeviceType.CPU and not event.is_user_annotation:
                total += event.time_range.elapsed_us()
                orphans[event.name, event.time_range.elapsed_us()] += 1
        for event in events:
            if event.device_type == torch.autograd.DeviceType.CPU:
                for kernel in event.kernels:
                    orphans[kernel.name, kernel.duration] -= 1
                    times[classify(_stack(event)), event.name] += kernel.duration / 1e3
        for (name, duration), count in (+orphans).items():
            times[classify([name]), name] += count * duration / 1e3
        return cls(times, total / 1e3)

    @property
    def kinds(self) -> dict[str, float]:
        """Milliseconds of each of `KINDS`."""
        return {kind: sum(time for (found, _), time in self.times.items() if found == kind)
                for kind in KINDS}

    @property
    def shares(self) -> dict[str, float]:
        """Shares of each of `KINDS`, which add up to 1."""
        total = sum(self.kinds.values())
        return {kind: time / total for kind, time in self.kinds.items()}

    def memory_bound(self, *, with_softmax: bool = False) -> float:
        """The share of `MEMORY_BOUND` kinds, with or without softmax and activation."""
        kinds = (*MEMORY_BOUND, SOFTMAX) if with_softmax else MEMORY_BOUND
        return sum(self.shares[kind] for kind in kinds)


def _stack(event: FunctionEvent) -> list[str]:
    names: list[str] = []
    caller: FunctionEvent | None = event
    while caller is not None:
        names.append(caller.name)
        caller = caller.cpu_parent
    return names


def profile_step(step: Callable[[], None], device: torch.device) -> Profile:
    """Run a step under the profiler.

    Raises:
        UserError: If the profiler saw no kernel on a device that is not a CPU.
    """
    on_device = device.type != 'cpu'
    activities = [ProfilerActivity.CPU]
    if on_device:
        activities += [activity for activity in torch.profiler.supported_activities()
                       if activity.name == device.type.upper()]
    else:
        # It would print that this machine has no GPU, to people who did not ask for one.
        os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    # Without acc_events the profiler warns that it forgets what is not asked for here.
    with profile(activities=activities, acc_events=True) as profiler:
        step()
    found = Profile.of(profiler.events(), on_device=on_device)
    if not found.total:
        raise UserError(f'torch.profiler sees no operations on {device}: can this torch profile '
                        'that device?')
    return found


def average(profiles: Sequence[Profile]) -> Profile:
    """The mean of the middle half of some profiles, by their totals.

    As robust as a median against a busy machine, but its kinds still add up to its total.
    """
    ordered = sorted(profiles, key=lambda profile: profile.total)
    middle = ordered[len(ordered) // 4:len(ordered) - len(ordered) // 4]
    times: dict[tuple[str, str], float] = defaultdict(float)
    for found in middle:
        for key, milliseconds in found.times.items():
            times[key] += milliseconds / len(middle)
    return Profile(times,
                   sum(found.total for found in middle) / len(middle))


def build_step(name: str, images: Tensor, *, train: bool = False, fused_attention: bool = True,
               options: Mapping[str, Any] | None = None) -> Step:
    """Build a model and what runs it.

    Args:
        name: As `build_subject` takes it, and a form behind a colon.
        images: (B, 3, H, W) on the device to run on.
        train: Whether to train.
        fused_attention: Let timm's models compute attention in one operation where they can.
        options: Arguments of our backbones, or values of a config.

    Raises:
        UserError: If the model or its form can't be built.
    """
    model_name, form = split_form(name)
    if form == 'deploy' and train:
        raise UserError(f'{name}: the deploy form can\'t be trained')
    model = _build(model_name, images.shape[-2:], options or {})
    if form == 'deploy':
        if not any(hasattr(module, 'switch_to_deploy') for module in model.modules()):
            raise UserError(f'{name} has no deploy form')
        deploy(model)
    if not fused_attention:
        attention: Any  # timm's, which has this attribute
        for attention in model.modules():
            if hasattr(attention, 'fused_attn'):
                attention.fused_attn = False
    return Step(model.to(images.device), images, train=train)


def _build(name: str, size: Sequence[int], options: Mapping[str, Any]) -> nn.Module:
    if not name.startswith(TIMM):
        ours = is_config(name) or '://' not in name
        return build_subject(name, options=options if ours else None)
    # Position tables and windows of transformers are made for one size, which is 224 unless told;
    # convolutional networks take every size, and no such argument.
    try:
        return build_subject(name, options={'img_size': tuple(size)})
    except ConfigError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        return build_subject(name)


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors that can be trained, out of nested lists, tuples and dicts."""
    if isinstance(outputs, Tensor):  # an empty one has no mean
        return [outputs] if outputs.requires_grad and outputs.numel() else []
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif not isinstance(outputs, Iterable):
        return []
    return [tensor for output in outputs for tensor in _tensors(output)]


def summarise(profile: Profile) -> dict[str, Any]:
    """What the JSON file says of a profile, in milliseconds and shares."""
    operations = sorted(profile.times.items(), key=lambda item: -item[1])
    return {
        'profiler_ms': profile.total,
        'kinds_ms': profile.kinds,
        'shares': profile.shares,
        'memory_bound': profile.memory_bound(),
        'memory_bound_with_softmax_and_activation': profile.memory_bound(with_softmax=True),
        'operations': [{'operation': operation, 'kind': kind, 'ms': time}
                       for (kind, operation), time in operations[:_LISTED]],
        'largest_of_other': [{'operation': operation, 'ms': time}
                             for (kind, operation), time in operations if kind == OTHER][:5],
    }


def analyze_runtime(options: Namespace) -> dict[str, Any]:
    """Profile the models of ``options`` and show them side by side.

    Args:
        options: What the sub-parser ``runtime`` of `evit_mm.cli.analyze` parses.

    Returns:
        dict: What `summarise` says of each model, by name; also the plain step's milliseconds.

    Raises:
        UserError: If a model, an option or the device can't be used.
    """
    for flag, number in (('--shape', min(options.shape)), ('--batch', options.batch),
                         ('--repeats', options.repeats)):
        if number < 1:
            raise UserError(f'{flag} must be positive, got {number}')
    for name in options.models:
        split_form(name)  # a mistake in the last name would otherwise show after minutes
    device = machine.use(options.device, threads=options.threads)
    train = options.mode == 'train'
    settings = {
        'mode': options.mode, 'shape': options.shape, 'batch': options.batch,
        'options': options.options or {}, 'fused_attention': not options.unfused,
        'repeats': options.repeats, 'seed': options.seed,
        'device': machine.describe(device), 'torch': torch.__version__}
    models = list(dict.fromkeys(options.models))
    results = Results(options.out / 'runtime.json', settings, overwrite=options.overwrite,
                      wanted=models)
    for name in tqdm(models, unit='model', leave=False, disable=None):
        if name in results:
            continue
        torch.manual_seed(options.seed)
        images = random_images(options.batch, options.shape, device)
        with must_run(name, images, train=train):
            step = build_step(name, images, train=train, fused_attention=not options.unfused,
                              options=options.options)
        results.add(name, _measure(name, step, options.repeats))
    found = {name: results[name] for name in models}
    print(f'{options.mode} of {options.batch} x 3 x {options.shape[0]} x {options.shape[1]}, '
          f'{settings["device"]}: share of the time in %')
    print(_table(found))
    print(_notes(found))
    _draw(options.out / 'runtime.png', found)
    print(f'written: {results.path} and {options.out / "runtime.png"}')
    return found


def _measure(name: str, step: Step, repeats: int) -> dict[str, Any]:
    with must_run(name, step.images, train=step.train):
        for _ in range(_WARM_UP):
            step()
        times, profiles = [], []
        for _ in tqdm(range(repeats), desc=name, unit='step', leave=False, disable=None):
            started = time.perf_counter()
            step()
            times.append((time.perf_counter() - started) * 1e3)
            profiles.append(profile_step(step, step.images.device))
    return {'step_ms': median(times), **summarise(average(profiles))}


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    header = ['model', 'ms', *KINDS, 'memory-bound', 'with softmax and activation']
    rows = [[name, f'{item["step_ms"]:.1f}', *(f'{item["shares"][kind]:.1%}' for kind in KINDS),
             f'{item["memory_bound"]:.1%}',
             f'{item["memory_bound_with_softmax_and_activation"]:.1%}']
            for name, item in found.items()]
    return format_table(header, [[str(cell).rstrip('%') for cell in row] for row in rows])


def _notes(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f'memory-bound: {", ".join(MEMORY_BOUND)}; the last column counts {SOFTMAX} too. '
             'ms: a step without the profiler.']
    for name, item in found.items():
        listed = [f'{entry["operation"]} {entry["ms"] / item["profiler_ms"]:.1%}'
                  for entry in item['largest_of_other'][:3]]
        lines.append(f'{OTHER} of {name}: {", ".join(listed) or "nothing"}')
    return '\n'.join(lines)


def _draw(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    labels = short_names(found)
    # Long names must not take their space from the bars.
    width = HALF_PAGE + 0.06 * max(0, max(map(len, labels)) - 20)
    with drawing(path, width=width, height=1.1 + 0.28 * len(found)) as figure:
        axes = figure.subplots()
        rows = range(len(found))
        ends = [0.0] * len(found)
        for kind in KINDS:
            widths = [100 * item['shares'][kind] for item in found.values()]
            axes.barh(rows, widths, left=ends, height=0.72, label=kind, color=COLOURS[kind],
                      edgecolor='white', linewidth=0.4)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        axes.set_yticks(rows, labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel('share of the run time (%)')
        figure.legend(loc='outside upper left', ncols=2)
