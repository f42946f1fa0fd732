"""Time exported detectors beside each other, and beside Ultralytics' yolo26n, in OpenVINO.

    PYTHONPATH=tests python -m light.times yolox-416.xml ours-320.xml --precision bf16
    pip install ultralytics
    PYTHONPATH=tests python -m light.times yolo26n ours-640.xml

Each runs from an image of its own size to its boxes, in turns; ratios are to the first one. Weights
of yolo26n are random. Its file is what Ultralytics exports; it suppresses nothing, and gets its
normalization built in, as ours have it.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import torch

from evit_mm.benchmark.timing import Stopwatch, quartiles, take_turns
from evit_mm.deployment.export.verify import drawn_image
from evit_runtime import load_model


def main() -> None:
    arguments = build_parser().parse_args()
    actions, images = {}, {}
    for name in arguments.models:
        actions[name], side = build(name, arguments.precision, arguments.threads, arguments.side)
        images[name] = drawn_image(side)
    timings = take_turns(
        # The first is not reported: threads of another runtime may still spin.
        {name: {'settle': lambda image, action=action: (action(image), image)[1],
                'predict': action} for name, action in actions.items()},
        images, Stopwatch(torch.device('cpu')), repeats=arguments.repeats)
    times = {name: timing.steps['predict'] for name, timing in timings.items()}
    first = arguments.models[0]
    for name, values in times.items():
        low, high = quartiles(values)
        print(f'{name}: {median(values):.1f} ms ({low:.1f} to {high:.1f}), '
              f'{median(values) / median(times[first]):.2f} of {first}')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', metavar='MODEL',
                        help='a file exported for images of a fixed size, or yolo26n')
    parser.add_argument('--side', type=int, default=640, help='of the images of yolo26n')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--threads', type=int)
    return parser


def build(name: str, precision: str, threads: int | None,
          side: int) -> tuple[Callable[[Any], Any], tuple[int, int]]:
    """Return what runs a model on an image (H, W, 3), uint8, and the height and width of it."""
    if name == 'yolo26n':
        return yolo26n(side, precision, threads), (side, side)
    model = load_model(name, 'openvino', threads=threads,
                       precision=precision if precision != 'fp32' else None)
    size = model.metadata.preprocessing.size
    if size is None:
        raise SystemExit(f'error: {name} takes images of any size: export it with --size')
    return lambda image: model([image]), size


def yolo26n(side: int, precision: str, threads: int | None) -> Callable[[Any], Any]:
    """Return what runs Ultralytics' file on an image (H, W, 3), uint8.

    With ``nms=False`` the file has the head that needs no suppression.
    """
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory() as folder:
        model = YOLO('yolo26n.yaml', verbose=False)
        model.model.pt_path = str(Path(folder, 'yolo26n.pt'))  # beside which the file is written
        path = model.export(format='openvino', imgsz=side, nms=False, verbose=False)
        network = openvino.Core().read_model(next(Path(path).glob('*.xml')))
        steps = openvino.preprocess.PrePostProcessor(network)
        steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(
            openvino.Layout('NHWC')).set_color_format(openvino.preprocess.ColorFormat.BGR)
        steps.input().preprocess().convert_element_type(openvino.Type.f32).convert_color(
            openvino.preprocess.ColorFormat.RGB).scale(255.0)
        steps.input().model().set_layout(openvino.Layout('NCHW'))
        settings: dict[str, Any] = {
            'INFERENCE_PRECISION_HINT': precision.replace('fp', 'f'),
            'PERFORMANCE_HINT': 'LATENCY'}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        compiled = openvino.compile_model(steps.build(), 'CPU', settings)

    def run(image: Any) -> Any:
        boxes = compiled(image[None])[0][0]  # (300, 6): corners, score, class
        return boxes[boxes[:, 4] > 0.01]

    assert np.shape(run(np.zeros((side, side, 3), np.uint8)))[1] == 6
    return run


if __name__ == '__main__':
    main()
