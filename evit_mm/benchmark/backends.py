"""Time from an image to its boxes in PyTorch and in the runtimes of exported files."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch

from evit_runtime.sessions import open_session

from ..arch import ARCHS
from ..deployment.export.backbone import FeatureMaps
from ..deployment.export.inputs import ImageInput
from ..deployment.export.run import export, fixed_predictor
from ..deployment.export.verify import drawn_image
from ..engine.config import load_config
from ..errors import UserError
from ..models import EfficientViT
from ..predict import TorchModel, load_model
from . import machine
from .model_factory import is_config
from .tables import format_table
from .timing import Stopwatch, quartiles, take_turns

__all__ = ['BACKENDS', 'BackendTime', 'benchmark_backends']

BACKENDS = ('torch', 'onnxruntime', 'openvino', 'openvino-bf16', 'openvino-int8')
_CALIBRATION_IMAGES = 16


@dataclass(frozen=True)
class BackendTime:
    """Time of a model in a runtime.

    Attributes:
        model: Name of the config or backbone.
        backend: One of `BACKENDS`.
        shape: Height and width of the image.
        milliseconds: Median; NaN after a failure.
        quartiles: First and third quartile.
        failure: Why there is no time.
    """

    model: str
    backend: str
    shape: tuple[int, int]
    milliseconds: float
    quartiles: tuple[float, float]
    failure: str | None = None


def benchmark_backends(models: Sequence[str], backends: Sequence[str], *,
                       shapes: Sequence[tuple[int, int]], repeats: int = 30,
                       threads: int | None = None, checkpoint: str | None = None, seed: int = 0,
                       options: Mapping[str, Any] | None = None,
                       report: Callable[[str], object] = lambda text: None
                       ) -> list[BackendTime]:
    """Time models in several runtimes, which all take turns.

    What is timed starts with an image (H, W, 3) in memory and ends with its boxes or its label map;
    for a backbone, with its feature maps. Each timed run follows one of the same runtime that is
    not timed. PyTorch computes eagerly in float32, in the form in which models are trained. Files
    have the fixed size of the image.

    Args:
        models: Names or paths of configs, or ``'m0'`` to ``'m5'``.
        backends: Some of `BACKENDS`; ratios are to the first, and to the first model in the same
            one.
        shapes: Heights and widths.
        repeats: Timed runs of each.
        threads: CPU threads of all runtimes.
        checkpoint: Weights of the only model; random ones by default, which find few objects.
        seed: Seed of the weights and of the order of runs.
        options: Values of the configs by dotted key.
        report: Called with a table for each size.

    Raises:
        UserError: If a name is unknown, or a model can't be built or exported.
    """
    unknown = [name for name in backends if name not in BACKENDS]
    if unknown:
        raise UserError(f'no such backend: {unknown[0]}; choose {", ".join(BACKENDS)}')
    if checkpoint and len(models) != 1:
        raise UserError('--checkpoint belongs to one MODEL')
    machine.use('cpu', threads=threads, seed=seed)
    rows: list[BackendTime] = []
    for shape in shapes:
        times = _time(list(dict.fromkeys(models)), backends, shape, repeats, threads, checkpoint,
                      seed, options or {})
        report(_table(times, shape))
        rows += times
    return rows


def _time(names: Sequence[str], backends: Sequence[str], shape: tuple[int, int], repeats: int,
          threads: int | None, checkpoint: str | None, seed: int,
          options: Mapping[str, Any]) -> list[BackendTime]:
    """Time models for images of one size, all in one run."""
    image = drawn_image(shape)
    actions: dict[str, Callable[[Any], Any]] = {}
    failures: dict[str, str] = {}
    keys = {(name, backend): f'{name} {backend}' for name in names for backend in backends}
    with ExitStack() as stack:
        for name in names:
            source, weights, values = stack.enter_context(_weights(name, checkpoint, options))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for backend in backends:
                try:
                    actions[keys[name, backend]] = _action(source, weights, backend, shape,
                                                           threads, values, folder)
                except UserError as error:
                    failures[keys[name, backend]] = str(error)
        timings = take_turns(
            {key: {'settle': _same_after(action), 'predict': action}
             for key, action in actions.items()},
            dict.fromkeys(actions, image), Stopwatch(torch.device('cpu')),
            repeats=repeats, seed=seed)
    rows = []
    for (name, backend), key in keys.items():
        timing = timings.get(key)
        times = timing.steps['predict'] if timing else []
        failure = timing.failure if timing else failures[key]
        rows.append(BackendTime(
            name, backend, shape, median(times) if times else float('nan'),
            quartiles(times) if times else (float('nan'),) * 2, failure))
    return rows


def _same_after(action: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a step that runs an action, and hands its input on to the next step.

    The threads of a runtime spin for a while after a run, and would slow down the next one's.
    """
    def run(image: Any) -> Any:
        action(image)
        return image

    return run


@contextmanager
def _weights(name: str, checkpoint: str | None, options: Mapping[str, Any]
             ) -> Iterator[tuple[Any, str, Mapping[str, Any] | None]]:
    """Yield a config or an arch with a checkpoint, of random weights if there is none.

    Every runtime gets the same weights in this way.
    """
    is_backbone = name.lower() in ARCHS
    if checkpoint is not None:
        yield name, checkpoint, None if is_backbone else options
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'weights.pth')
        if is_backbone:
            torch.save(EfficientViT(name.lower()).state_dict(), path)
            yield name.lower(), os.fspath(path), None
            return
        config = load_config(name, options)
        config.model.backbone.init_cfg = None
        model = load_model(config)
        assert isinstance(model, TorchModel)
        torch.save({'state_dict': model.module.state_dict()}, path)
        yield name, os.fspath(path), options


def _action(source: Any, checkpoint: str, backend: str, shape: tuple[int, int],
            threads: int | None, options: Mapping[str, Any] | None, folder: Path
            ) -> Callable[[Any], Any]:
    """Return what computes the result of an image in a runtime."""
    is_backbone = str(source).lower() in ARCHS
    if backend == 'torch':
        return _torch_action(source, checkpoint, shape, options, is_backbone)
    runtime, _, precision = backend.partition('-')
    path = folder / ('int8.xml' if precision == 'int8' else 'model.onnx')
    if not path.exists():
        images = None
        if precision == 'int8':
            images = folder / 'images'
            images.mkdir()
            for number in range(_CALIBRATION_IMAGES):
                cv2.imwrite(os.fspath(images / f'{number}.png'),
                            np.roll(drawn_image(shape), 31 * number, axis=(0, 1)))
        export(source, checkpoint, out=path, size=shape, verify=False, calibrate=images,
               precision=precision if precision == 'int8' else 'fp32', cfg_options=options)
    chosen = precision if precision == 'bf16' else None
    if is_backbone:
        session, _ = open_session(path, runtime, threads, chosen, 'cpu')
        return lambda image: session.run({'images': image[None]})
    from evit_runtime import load_model as load_exported

    model = load_exported(path, runtime, threads=threads, precision=chosen)
    return lambda image: model([image])


def _torch_action(source: Any, checkpoint: str, shape: tuple[int, int],
                  options: Mapping[str, Any] | None, is_backbone: bool) -> Callable[[Any], Any]:
    if is_backbone:
        backbone = EfficientViT(source, init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
        backbone.init_weights()
        maps = FeatureMaps(ImageInput(), backbone.eval(), len(backbone.out_channels)).eval()

        def run(image: Any) -> Any:
            with torch.no_grad():
                return maps(torch.from_numpy(image)[None])

        return run
    predictor = load_model(load_config(source, options), checkpoint)
    predictor = fixed_predictor(predictor, shape)
    return lambda image: predictor([image])


def _table(rows: Sequence[BackendTime], shape: tuple[int, int]) -> str:
    """Format the times of all models at one size, with ratios to first backend and first model."""
    of_backend = {row.model: row.milliseconds for row in reversed(rows)}
    of_model = {row.backend: row.milliseconds for row in reversed(rows)}
    names = _short_names({row.model for row in rows})
    cells: list[tuple[str | None, ...]] = []
    for row in rows:
        name = names[row.model]
        if row.failure:
            cells.append((name, row.backend, 'failed', None, None, None))
            continue
        low, high = row.quartiles
        cells.append((name, row.backend, f'{row.milliseconds:.1f}', f'{low:.1f} to {high:.1f}',
                      f'{row.milliseconds / of_backend[row.model]:.2f}',
                      f'{row.milliseconds / of_model[row.backend]:.2f}'))
    header = ['model', 'backend', 'ms', 'quartiles', f'to {rows[0].backend}',
              f'to {names[rows[0].model]}']
    if len(names) == 1:
        header, cells = header[:5], [cell[:5] for cell in cells]
    notes = [f'{names[row.model]}, {row.backend}: {row.failure}' for row in rows if row.failure]
    return '\n'.join([f'Images of {shape[0]}x{shape[1]}, from the image to its boxes or label map:',
                      '', format_table(header, cells, align='llrrrr'[:len(header)]),
                      *([''] if notes else []), *notes])


def _short_names(models: Iterable[str]) -> dict[str, str]:
    """Return the file names of configs, or the full names where two would be equal."""
    models = list(models)
    stems = [Path(name.rpartition('::')[2]).stem if is_config(name) else name for name in models]
    return {name: stem if stems.count(stem) == 1 else name
            for name, stem in zip(models, stems, strict=True)}
