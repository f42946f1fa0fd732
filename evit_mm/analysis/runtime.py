"""Run time of models by kind of operation (section 2.1 of the paper).

The times are self times of torch.profiler: the time of an operation without the operations it
calls, so that they add up to the total. On a GPU they are the times of the kernels. The overhead
of the profiler makes small operations look larger than they are, in all models alike.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from ..benchmark import machine
from ..benchmark.figures import HALF_PAGE, PALETTE, drawing
from ..benchmark.model_factory import TIMM, build_model, is_config, short_names, split_form
from ..benchmark.tables import format_table
from ..benchmark.timing import raise_user_errors
from ..deployment import deploy
from ..errors import ConfigError, UserError
from ..ops.nested import tensors_in
from .operations import ADD, COMPUTE, COPY, KINDS, MEMORY_BOUND, NORM, OTHER, SOFTMAX, classify
from .results import Results

__all__ = ['Profile', 'Step', 'analyze_runtime', 'average', 'build_step', 'profile_step',
           'random_images', 'summarize', 'translate_run_errors']

COLOURS = {COMPUTE: PALETTE['blue'], COPY: PALETTE['vermilion'], ADD: PALETTE['orange'],
           NORM: PALETTE['yellow'], SOFTMAX: PALETTE['green'], OTHER: PALETTE['grey']}

_WARM_UP_STEPS = 2
_MAX_OPERATIONS = 30  # of a model in the JSON file; the rest is negligible


class Step:
    """One inference, or one training step: forward and backward pass, without the optimizer.

    The loss of a training step is the sum of the mean squares of the outputs, because the cost of
    a model's own loss depends on its data. Parts without an output of their own, such as the RPN
    head of a two-stage detector, only run forward.

    Args:
        model: The model, on its device. A detector or segmentor runs up to its head's raw outputs.
        images: (B, 3, H, W) on the same device.
        train: Whether to train; sets the model's mode.
    """

    def __init__(self, model: nn.Module, images: Tensor, *, train: bool) -> None:
        self.model = model.train(train)
        self.images = images
        self.train = train
        self._arguments = _extra_arguments(model, images)

    def __call__(self) -> None:
        """Run the step, and wait until the device has finished.

        Raises:
            ValueError: If no output has a gradient.
        """
        if self.train:
            self.model.zero_grad(set_to_none=True)
            outputs = [output for output in tensors_in(self.model(self.images, **self._arguments))
                       if output.requires_grad and output.numel()]  # an empty one has no mean
            if not outputs:
                raise ValueError('none of its outputs has a gradient')
            torch.stack([output.square().mean() for output in outputs]).sum().backward()
        else:
            with torch.inference_mode():
                self.model(self.images, **self._arguments)
        if self.images.is_cuda:
            torch.cuda.synchronize(self.images.device)


def _extra_arguments(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Return the arguments besides images that a model's forward pass needs."""
    if not isinstance(model, BaseModel):
        return {}
    # By name, because mmdet need not be installed for segmentors.
    if not any(cls.__module__.startswith('mmdet.') for cls in type(model).__mro__):
        return {'mode': 'tensor'}
    from mmdet.structures import DetDataSample

    # Two-stage detectors clip proposals to the image.
    size = tuple(images.shape[-2:])
    meta = {'img_shape': size, 'ori_shape': size, 'pad_shape': size, 'batch_input_shape': size,
            'scale_factor': (1.0, 1.0)}
    return {'mode': 'tensor', 'data_samples': [DetDataSample(metainfo=meta) for _ in images]}


def random_images(number: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return random images (number, 3, *shape).

    Raises:
        UserError: If the device has too little memory.
    """
    size = 'x'.join(map(str, shape))
    with raise_user_errors(f'can\'t allocate {number} images of {size}', device):
        return torch.randn(number, 3, *shape, device=device)


@contextmanager
def translate_run_errors(name: str, images: Tensor, *, train: bool = False) -> Iterator[None]:
    """Translate any error of a model that runs within the context into a `UserError`.

    Args:
        name: Name of the model.
        images: Its input.
        train: Whether it is trained.

    Raises:
        UserError: If the model can't run.
    """
    with raise_user_errors(f'{name} can\'t run on {tuple(images.shape)} in '
                   f'{"training" if train else "inference"}', images.device):
        yield


@dataclass(frozen=True)
class Profile:
    """Self times of a step.

    Attributes:
        times: Milliseconds by (kind, operation).
        total: Total reported by the profiler, in milliseconds.
    """

    times: Mapping[tuple[str, str], float]
    total: float

    @classmethod
    def from_events(cls, events: Sequence[FunctionEvent], *, on_device: bool = False) -> 'Profile':
        """Sort the events of a profiler by kind.

        Args:
            events: Events from `torch.profiler.profile.events`.
            on_device: Count the time of kernels instead of the CPU time that launches them.
        """
        times: dict[tuple[str, str], float] = defaultdict(float)
        if not on_device:
            for event in events:
                times[classify(_call_stack(event)), event.name] += event.self_cpu_time_total / 1e3
            return cls(times, sum(event.self_cpu_time_total for event in events) / 1e3)
        # A kernel has the kind of the operation that launched it. Kernels of compiled code may
        # not have such an operation, and are classified by their own names.
        total, orphans = 0.0, Counter[tuple[str, float]]()
        for event in events:
            if event.device_type != torch.autograd.DeviceType.CPU and not event.is_user_annotation:
                total += event.time_range.elapsed_us()
                orphans[event.name, event.time_range.elapsed_us()] += 1
        for event in events:
            if event.device_type == torch.autograd.DeviceType.CPU:
                for kernel in event.kernels:
                    orphans[kernel.name, kernel.duration] -= 1
                    times[classify(_call_stack(event)), event.name] += kernel.duration / 1e3
        for (name, duration), count in (+orphans).items():
            times[classify([name]), name] += count * duration / 1e3
        return cls(times, total / 1e3)

    @property
    def kinds(self) -> dict[str, float]:
        """Return the milliseconds of each of `KINDS`."""
        return {kind: sum(time for (own_kind, _), time in self.times.items() if own_kind == kind)
                for kind in KINDS}

    @property
    def shares(self) -> dict[str, float]:
        """Return the shares of each of `KINDS`, which sum to 1."""
        total = sum(self.kinds.values())
        return {kind: time / total for kind, time in self.kinds.items()}

    def memory_bound(self, *, with_softmax: bool = False) -> float:
        """Return the share of `MEMORY_BOUND` kinds, optionally with softmax and activation."""
        kinds = (*MEMORY_BOUND, SOFTMAX) if with_softmax else MEMORY_BOUND
        return sum(self.shares[kind] for kind in kinds)


def _call_stack(event: FunctionEvent) -> list[str]:
    """Return the names of an operation and its callers, innermost first."""
    names: list[str] = []
    caller: FunctionEvent | None = event
    while caller is not None:
        names.append(caller.name)
        caller = caller.cpu_parent
    return names


def profile_step(step: Callable[[], None], device: torch.device) -> Profile:
    """Run a step under the profiler.

    Raises:
        UserError: If the profiler reports no operations on the device.
    """
    on_device = device.type != 'cpu'
    activities = [ProfilerActivity.CPU]
    if on_device:
        activities += [activity for activity in torch.profiler.supported_activities()
                       if activity.name == device.type.upper()]
    else:
        # Silences a message about a missing GPU, which is not used here.
        os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    # Without acc_events the profiler warns that it discards the events of earlier cycles.
    with profile(activities=activities, acc_events=True) as profiler:
        step()
    result = Profile.from_events(profiler.events(), on_device=on_device)
    if not result.total:
        raise UserError(f'torch.profiler reports no operations on {device}: check that this build '
                        'of torch can profile that device')
    return result


def average(profiles: Sequence[Profile]) -> Profile:
    """Return the mean of the middle half of some profiles, ordered by their totals.

    It is as robust as a median if the machine is busy at times, and its kinds add up to its total.
    """
    ordered = sorted(profiles, key=lambda profile: profile.total)
    middle = ordered[len(ordered) // 4:len(ordered) - len(ordered) // 4]
    times: dict[tuple[str, str], float] = defaultdict(float)
    for member in middle:
        for key, milliseconds in member.times.items():
            times[key] += milliseconds / len(middle)
    return Profile(times, sum(member.total for member in middle) / len(middle))


def build_step(name: str, images: Tensor, *, train: bool = False, fused_attention: bool = True,
               options: Mapping[str, Any] | None = None) -> Step:
    """Build a model and a step that runs it.

    Args:
        name: A name that `build_model` accepts, optionally with a form after a colon.
        images: (B, 3, H, W) on the device to run on.
        train: Whether to train.
        fused_attention: Let timm's models compute attention in one operation if they can.
        options: Arguments of EfficientViT, or values of a config.

    Raises:
        UserError: If the model or its form can't be built.
    """
    model_name, form = split_form(name)
    if form == 'deploy' and train:
        raise UserError(f'{name}: the deploy form can\'t be trained')
    model = _build_model(model_name, images.shape[-2:], options or {})
    if form == 'deploy':
        if not any(hasattr(module, 'switch_to_deploy') for module in model.modules()):
            raise UserError(f'{name} has no deploy form')
        deploy(model)
    if not fused_attention:
        attention: Any  # timm's classes have this attribute
        for attention in model.modules():
            if hasattr(attention, 'fused_attn'):
                attention.fused_attn = False
    return Step(model.to(images.device), images, train=train)


def _build_model(name: str, size: Sequence[int], options: Mapping[str, Any]) -> nn.Module:
    if not name.startswith(TIMM):
        takes_options = is_config(name) or '://' not in name
        return build_model(name, options=options if takes_options else None)
    # timm's transformers are built for one size, 224 by default; its convolutional networks take
    # any size and have no such argument.
    try:
        return build_model(name, options={'img_size': tuple(size)})
    except ConfigError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        return build_model(name)


def summarize(profile: Profile) -> dict[str, Any]:
    """Return a profile's entry in the JSON file, in milliseconds and shares."""
    operations = sorted(profile.times.items(), key=lambda item: -item[1])
    return {
        'profiler_ms': profile.total,
        'kinds_ms': profile.kinds,
        'shares': profile.shares,
        'memory_bound': profile.memory_bound(),
        'memory_bound_with_softmax_and_activation': profile.memory_bound(with_softmax=True),
        'operations': [{'operation': operation, 'kind': kind, 'ms': time}
                       for (kind, operation), time in operations[:_MAX_OPERATIONS]],
        'largest_of_other': [{'operation': operation, 'ms': time}
                             for (kind, operation), time in operations if kind == OTHER][:5],
    }


def analyze_runtime(models: Sequence[str], *, mode: Literal['inference', 'train'] = 'inference',
                    shape: Sequence[int] = (512, 512), batch: int = 1, repeats: int = 10,
                    unfused: bool = False, options: Mapping[str, Any] | None = None,
                    out: str | os.PathLike[str] = 'work_dirs/analysis/runtime',
                    overwrite: bool = False, device: str = 'cpu', threads: int | None = None,
                    seed: int = 0) -> dict[str, dict[str, Any]]:
    """Profile models, print a table, and write ``runtime.json`` and ``runtime.png``.

    Args:
        models: ``'m0'`` to ``'m5'``, ``'timm://MODEL'``, ``'torchvision://resnet50'``,
            ``'torchvision://mobilenet_v3_large'`` or a config; ``':deploy'`` after it selects the
            deploy form.
        mode: ``'train'`` profiles forward and backward pass.
        shape: Height and width of the images.
        batch: Images per step.
        repeats: Profiled steps, of which the middle half is averaged.
        unfused: Let timm's models compute attention step by step.
        options: Arguments of our backbones, or values of configs by dotted key.
        out: Folder of the results; those of an earlier run with the same settings are reused.
        overwrite: Discard the results of an earlier run.
        device: Device name, as in torch.
        threads: Number of CPU threads; torch's default if None.
        seed: Random seed of images and weights.

    Returns:
        dict: By model, the values of `summarize` and ``'step_ms'``, the median time of a step
        without the profiler.

    Raises:
        UserError: If a model, an argument or the device can't be used.
    """
    for flag, number in (('--shape', min(shape)), ('--batch', batch), ('--repeats', repeats)):
        if number < 1:
            raise UserError(f'{flag} must be positive, got {number}')
    models = list(dict.fromkeys(models))
    for name in models:
        split_form(name)  # reports a wrong form of the last model now, not after minutes
    torch_device = machine.use(device, threads=threads)
    device_name = machine.describe(torch_device)
    train, out = mode == 'train', Path(out)
    results = Results(out / 'runtime.json', {
        'mode': mode, 'shape': shape, 'batch': batch, 'options': options or {},
        'fused_attention': not unfused, 'repeats': repeats, 'seed': seed, 'device': device_name,
        'torch': torch.__version__}, overwrite=overwrite, names=models)
    for name in tqdm(models, unit='model', leave=False, disable=None):
        if name in results:
            continue
        torch.manual_seed(seed)
        images = random_images(batch, shape, torch_device)
        with translate_run_errors(name, images, train=train):
            step = build_step(name, images, train=train, fused_attention=not unfused,
                              options=options)
        results.add(name, _measure(name, step, repeats))
    items = {name: results[name] for name in models}
    print(f'{mode} of {batch} x 3 x {shape[0]} x {shape[1]}, {device_name}: share of the time in %')
    print(_table(items))
    print(_notes(items))
    _draw(out / 'runtime.png', items)
    print(f'written: {results.path} and {out / "runtime.png"}')
    return items


def _measure(name: str, step: Step, repeats: int) -> dict[str, Any]:
    with translate_run_errors(name, step.images, train=step.train):
        for _ in range(_WARM_UP_STEPS):
            step()
        times, profiles = [], []
        for _ in tqdm(range(repeats), desc=name, unit='step', leave=False, disable=None):
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) * 1e3)
            profiles.append(profile_step(step, step.images.device))
    return {'step_ms': median(times), **summarize(average(profiles))}


def _table(items: Mapping[str, Mapping[str, Any]]) -> str:
    header = ['model', 'ms', *KINDS, 'memory-bound', 'with softmax and activation']
    rows = [[name, f'{item["step_ms"]:.1f}',
             *(f'{100 * item["shares"][kind]:.1f}' for kind in KINDS),
             f'{100 * item["memory_bound"]:.1f}',
             f'{100 * item["memory_bound_with_softmax_and_activation"]:.1f}']
            for name, item in items.items()]
    return format_table(header, rows)


def _notes(items: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f'memory-bound: {", ".join(MEMORY_BOUND)}; the last column adds {SOFTMAX}. '
             'ms: a step without the profiler.']
    for name, item in items.items():
        operations = [f'{entry["operation"]} {entry["ms"] / item["profiler_ms"]:.1%}'
                      for entry in item['largest_of_other'][:3]]
        lines.append(f'{OTHER} of {name}: {", ".join(operations) or "nothing"}')
    return '\n'.join(lines)


def _draw(path: Path, items: Mapping[str, Mapping[str, Any]]) -> None:
    labels = short_names(items)
    # Long names must not take space from the bars.
    width = HALF_PAGE + 0.06 * max(0, max(map(len, labels)) - 20)
    with drawing(path, width=width, height=1.1 + 0.28 * len(items)) as figure:
        axes = figure.subplots()
        rows = range(len(items))
        starts = [0.0] * len(items)
        for kind in KINDS:
            widths = [100 * item['shares'][kind] for item in items.values()]
            axes.barh(rows, widths, left=starts, height=0.72, label=kind, color=COLOURS[kind],
                      edgecolor='white', linewidth=0.4)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_yticks(rows, labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel('share of the run time (%)')
        figure.legend(loc='outside upper left', ncols=2)
