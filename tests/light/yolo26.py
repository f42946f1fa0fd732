"""Time Ultralytics' yolo26n beside exported files of ours, image to boxes, in OpenVINO.

    pip install ultralytics
    PYTHONPATH=tests python -m light.yolo26 model-640.xml --precision bf16

Weights of yolo26n are random. Its file is what Ultralytics exports; it suppresses nothing, and gets
its normalization built in, as ours have it. What is timed starts with an image of the file's size.
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
    image = drawn_image((arguments.side, arguments.side))
    actions = {'yolo26n': yolo26n(arguments.side, arguments.precision, arguments.threads)}
    for file in arguments.files:
        actions[file] = ours(file, arguments.precision, arguments.threads)
    timings = take_turns(
        # The first is not reported: threads of another runtime may still spin.
        {name: {'settle': lambda image, action=action: (action(image), image)[1],
                'predict': action} for name, action in actions.items()},
        dict.fromkeys(actions, image), Stopwatch(torch.device('cpu')), repeats=arguments.repeats)
    times = {name: timing.steps['predict'] for name, timing in timings.items()}
    for name, values in times.items():
        low, high = quartiles(values)
        print(f'{name}: {median(values):.1f} ms ({low:.1f} to {high:.1f}), '
              f'{median(values) / median(times["yolo26n"]):.2f} of yolo26n')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('files', nargs='+', help='exported for the fixed size of --side')
    parser.add_argument('--side', type=int, default=640)
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--threads', type=int)
    return parser


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


def ours(file: str, precision: str, threads: int | None) -> Callable[[Any], Any]:
    """Return what runs a file of ours on an image (H, W, 3), uint8."""
    model = load_model(file, 'openvino', threads=threads,
                       precision=precision if precision != 'fp32' else None)
    return lambda image: model([image])


if __name__ == '__main__':
    main()
