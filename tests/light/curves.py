"""Train the detectors of the ablation on the same few images; write docs/light-curves.json, .png.

    make light-curves COCO=/data/coco
    PYTHONPATH=tests python -m light.curves --data-root COCO --seed 1 --only RTMDet-tiny
    PYTHONPATH=tests python -m light.curves --data-root data/small_objects --unseen --side 288 \
        --distinct 1600 --images 6400 --only YOLOX-nano --out work_dirs/small-objects.json

All start from random weights, see the same images in the same order, flipped at random, with one
rate and one batch size, and are evaluated on the images that they were trained on, or with --unseen
on those of the validation, also with statistics of BN that are computed anew from these images.
"""

import argparse
import contextlib
import io
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from light.variants import PEERS, SIZES, VARIANTS, variant_config

# isort: split
from mmdet.evaluation import CocoMetric
from mmdet.utils import register_all_modules
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from evit_mm.benchmark.tables import format_table
from evit_mm.files import write_json

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / 'docs' / 'light-curves.json'
BATCH = 4
RATE = 1e-3
WARM_UP = 20
SHARES = (0.25, 0.5, 1.0)  # of the training, where it is evaluated
OPTIMIZER = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=RATE, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
    # Heads share convolutions between levels.
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0, bypass_duplicate=True))


def main() -> None:
    arguments = build_parser().parse_args()
    register_all_modules()
    MMLogger.get_current_instance().setLevel('CRITICAL')  # it reports each evaluation
    results = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.only:
        results.setdefault(name, {}).update(cost(name, arguments.side))
        points = curve(name, arguments.data_root, distinct=arguments.distinct,
                       images=arguments.images, side=arguments.side, unseen=arguments.unseen,
                       seed=arguments.seed, device=arguments.device)
        results[name].setdefault('seeds', {})[str(arguments.seed)] = points
        print(name, json.dumps(results[name]), flush=True)
        write_json(arguments.out, results, indent=1)
    draw(results, arguments.out.with_suffix('.png'))
    print(table(results))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', type=Path, required=True, help='a folder in COCO\'s layout')
    parser.add_argument('--distinct', type=int, default=16, help='images to train on, the first')
    parser.add_argument('--images', type=int, default=960, help='images that each detector sees')
    parser.add_argument('--side', type=int, default=320, help='height and width of the images')
    parser.add_argument('--unseen', action='store_true', help='evaluate on val2017')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--only', nargs='+', metavar='NAME', default=[*VARIANTS, *SIZES, *PEERS],
                        choices=[*VARIANTS, *SIZES, *PEERS])
    parser.add_argument('--out', type=Path, default=RESULTS)
    return parser


def cost(name: str, side: int) -> dict[str, float]:
    """Return the side of the images, millions of parameters and, per image, of multiply-adds."""
    model = MODELS.build(variant_config(name)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.bbox_head(model.extract_feat(torch.zeros(1, 3, side, side)))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return dict(side=side, parameters=round(parameters / 1e6, 3),
                multiply_adds=round(counter.get_total_flops() / 2e6, 1))


def curve(name: str, root: Path, *, distinct: int, images: int, side: int = 320,
          unseen: bool = False, seed: int = 0, device: str = 'cpu') -> list[dict[str, float]]:
    """Train a detector, and return its loss and average precisions after parts of the training."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    trained_on = dataset(root, distinct, side=side, flip=True)
    evaluated_on = (dataset(root, None, side=side, split='val') if unseen else
                    dataset(root, distinct, side=side))
    model: Any = MODELS.build(variant_config(name, len(trained_on.metainfo['classes'])))
    model.init_weights()
    model.to(device)
    optimizer = build_optim_wrapper(model, OPTIMIZER)
    steps = images // BATCH
    stops = {round(share * steps) for share in SHARES}
    points, losses = [], []
    order = _endless_order(len(trained_on), seed)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group['lr'] = RATE * min(1, step / WARM_UP)
        model.train()
        batch = pseudo_collate([trained_on[next(order)] for _ in range(BATCH)])
        losses.append(model.train_step(batch, optimizer)['loss'].item())
        if step in stops:
            point = dict(images=step * BATCH, loss=round(float(np.mean(losses[-20:])), 4))
            point |= evaluate(model, evaluated_on)
            with recomputed_statistics(model, evaluated_on):
                point |= {f'{key}_recomputed': value
                          for key, value in evaluate(model, evaluated_on).items()}
            points.append(point)
    return points


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a table in Markdown: cost, and AP in % at each point.

    With several seeds, each figure is the mean over them, with the lowest and the highest.
    """
    runs = [list(result['seeds'].values()) for result in results.values()]
    images = [point['images'] for point in runs[0][0]]
    header = ['', 'image side', 'parameters', 'multiply-adds',
              *(f'AP at {count}' for count in images), 'AP50', 'AP small', 'AP, BN anew']
    rows = []
    for (name, result), seeds in zip(results.items(), runs, strict=True):
        ends = [points[-1] for points in seeds]
        rows.append([
            name, str(result['side']), f'{result["parameters"]:.2f} M',
            f'{result["multiply_adds"] / 1000:.2f} G',
            *(spread(100 * points[k]['ap'] for points in seeds) for k in range(len(images))),
            *(spread(100 * end[key] for end in ends if key in end)
              for key in ('ap50', 'ap_small', 'ap_recomputed'))])
    return format_table(header, rows)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw AP over the images seen, a line for each detector, with the spread of its seeds."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout='constrained')
    for name, result in results.items():
        seeds = list(result['seeds'].values())
        images = [0, *(point['images'] for point in seeds[0])]
        aps = 100 * np.array([[0, *(point['ap'] for point in points)] for points in seeds])
        line, = axes.plot(images, aps.mean(axis=0), marker='o', label=name,
                          linestyle='--' if name in PEERS else '-')
        axes.fill_between(images, aps.min(axis=0), aps.max(axis=0), alpha=0.2,
                          color=line.get_color())
    axes.set(xlabel='images seen', ylabel='AP', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def spread(values: Iterable[float]) -> str:
    """Format the mean of several seeds with the lowest and the highest; '' of none."""
    values = list(values)
    if not values:
        return ''
    ends = f' ({min(values):.1f} to {max(values):.1f})' if len(values) > 1 else ''
    return f'{np.mean(values):.1f}{ends}'


def dataset(root: Path, distinct: int | None, *, side: int, split: str = 'train',
            flip: bool = False) -> Any:
    """Return the first images that have objects, or all of them, as squares of one size."""
    annotations = f'annotations/instances_{split}2017.json'
    categories = json.loads((root / annotations).read_text())['categories']
    classes = [each['name'] for each in sorted(categories, key=lambda each: each['id'])]
    steps = [dict(type='LoadImageFromFile'),
             dict(type='LoadAnnotations', with_bbox=True),
             dict(type='Resize', scale=(side, side), keep_ratio=False),
             *([dict(type='RandomFlip', prob=0.5)] if flip else []),
             dict(type='PackDetInputs', meta_keys=(
                 'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'))]
    return DATASETS.build(dict(
        type='CocoDataset', data_root=str(root), ann_file=annotations,
        data_prefix=dict(img=f'{split}2017/'), filter_cfg=dict(filter_empty_gt=True),
        metainfo=dict(classes=classes), indices=distinct, pipeline=steps))


@torch.no_grad()
def evaluate(model: Any, images: Sequence[Any]) -> dict[str, float]:
    """Return the average precisions of a detector on some images."""
    model.eval()
    metric = CocoMetric(metric='bbox')
    metric.dataset_meta = images.metainfo
    for batch in _batches(images):
        samples = [sample.to_dict() for sample in model.test_step(batch)]
        metric.process(batch, samples)
    with contextlib.redirect_stdout(io.StringIO()):
        values = metric.evaluate(len(images))
    names = dict(ap='mAP', ap50='mAP_50', ap_small='mAP_s')
    return {name: values.get(f'coco/bbox_{key}', 0.0) for name, key in names.items()}


@contextlib.contextmanager
def recomputed_statistics(model: Any, images: Sequence[Any]) -> Iterator[None]:
    """Give BN the mean of its statistics over some images, and its own back afterwards."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    state = [{key: value.clone() for key, value in norm.state_dict().items()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    model.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for batch in _batches(images):
            data = model.data_preprocessor(batch, training=False)
            model.bbox_head(model.extract_feat(data['inputs']))
    yield
    for norm, values, momentum in zip(norms, state, momenta, strict=True):
        norm.load_state_dict(values)
        norm.momentum = momentum


def _batches(images: Sequence[Any]) -> Iterator[Any]:
    for start in range(0, len(images), BATCH):
        numbers = range(start, min(start + BATCH, len(images)))
        yield pseudo_collate([images[number] for number in numbers])


def _endless_order(count: int, seed: int) -> Iterator[int]:
    """Yield the numbers of images, each once before any comes again."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(count).tolist()


if __name__ == '__main__':
    main()
