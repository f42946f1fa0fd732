"""Train light segmentors on the same generated scenes; write docs/light-scenes.json.

    evit-mm data shapes --layout ade --out data/shapes
    PYTHONPATH=tests python -m light.segmentors --data-root data/shapes/ade

All start from random weights, with the recipe of `make demo-seg`, and are evaluated on the scenes
that they were not trained on.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from light.curves import spread
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evit_mm import train
from evit_mm.benchmark.tables import format_table
from evit_mm.engine.config import load_config
from evit_mm.files import write_json

# isort: split
from mmseg.models.decode_heads import LRASPPHead
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

RESULTS = Path(__file__).resolve().parents[2] / 'docs' / 'light-scenes.json'
SIDE = 512  # for which multiply-adds are counted
_WIDTH = 64
_MAPS = [32, 64, 128, 192]  # channels of strides 8 to 64

HEADS: dict[str, dict[str, Any]] = {
    'as configured': {},
    'LCPAN before it': dict(
        neck=dict(type='LCPAN', in_channels=_MAPS, out_channels=_WIDTH),
        decode_head=dict(in_channels=[_WIDTH] * 4)),
    'Semantic FPN': dict(
        neck=dict(type='EfficientViTFPN', in_channels=_MAPS, in_strides=[8, 16, 32, 64],
                  out_channels=_WIDTH),
        decode_head=dict(type='FPNHead', in_channels=[_WIDTH] * 4,
                         feature_strides=[8, 16, 32, 64])),
    'LR-ASPP': dict(
        decode_head=dict(type='GlobalLRASPPHead', in_channels=[32, 64, 192], in_index=[0, 1, 3],
                         input_transform='multiple_select')),
}
"""The changes of the smallest light segmentor's config, by name."""

PEERS = {
    'PIDNet-S': 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'SegFormer-B0': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'STDC1': 'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    'SegNeXt-T': 'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'BiSeNetV2': 'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
}


@MODELS.register_module()
class GlobalLRASPPHead(LRASPPHead):
    """MMSegmentation's LR-ASPP head with a mean of the whole map instead of windows of 49x49."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.image_pool[0] = nn.AdaptiveAvgPool2d(1)


def main() -> None:
    arguments = build_parser().parse_args()
    register_all_modules()
    results = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.only:
        model = model_config(name)
        results.setdefault(name, {}).update(cost(model))
        miou = unseen_miou(model, arguments.data_root, arguments.seed)
        results[name].setdefault('seeds', {})[str(arguments.seed)] = miou
        write_json(arguments.out, results, indent=1)
    print(table(results))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data-root', type=Path, required=True, help='with ADE20K\'s folders')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=[*HEADS, *PEERS],
                        default=[*HEADS, *PEERS])
    parser.add_argument('--out', type=Path, default=RESULTS)
    return parser


def model_config(name: str) -> ConfigDict:
    """Return the config of the model of a head or peer, which loads no weights."""
    config = get_config(PEERS[name]) if name in PEERS else load_config('evit_seg_s_ade20k')
    model: Any = config.model
    model.merge(HEADS.get(name, {}))
    # Frozen statistics would be those of random weights.
    model.backbone.update({'norm_eval': False} if name in HEADS else {}, init_cfg=None)
    if name in PEERS:
        model.pretrained = None
        for part in ('backbone_cfg', 'pretrain'):
            if isinstance(model.backbone.get(part), dict):
                model.backbone[part].init_cfg = None
        for loss in _losses(model.decode_head):
            loss.pop('class_weight', None)  # of Cityscapes' classes
    model.auxiliary_head = None
    model.decode_head.num_classes = 150
    model.test_cfg = dict(mode='whole')
    return model


def _losses(head: Any) -> list[Any]:
    losses = head.get('loss_decode', [])
    return losses if isinstance(losses, list) else [losses]


def cost(model: ConfigDict) -> dict[str, float]:
    """Return millions of parameters and of multiply-adds for an image of 512x512."""
    segmentor = MODELS.build(model).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        segmentor.decode_head(segmentor.extract_feat(torch.zeros(1, 3, SIDE, SIDE)))
    parameters = sum(parameter.numel() for parameter in segmentor.parameters())
    return dict(parameters=round(parameters / 1e6, 3),
                multiply_adds=round(counter.get_total_flops() / 2e6, 1))


def unseen_miou(model: ConfigDict, root: Path, seed: int) -> float:
    """Train a segmentor, and return its mIoU in percent on the scenes of the validation."""
    config = load_config('upernet_evit_m0_shapes')
    preprocessor = config.model.data_preprocessor
    config.model = model
    config.model.data_preprocessor = preprocessor
    if model.decode_head.type == 'PIDHead':  # learns the borders of regions as well
        pipeline = config.train_dataloader.dataset.pipeline
        pipeline.insert(-1, dict(type='GenerateEdge', edge_width=4))
    with tempfile.TemporaryDirectory() as folder:
        train(config, work_dir=folder, data_root=root, seed=seed)
        logs = [json.loads(line) for file in Path(folder).rglob('scalars.json')
                for line in file.read_text().splitlines()]
    return next(entry['mIoU'] for entry in reversed(logs) if 'mIoU' in entry)


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a table in Markdown, with the lowest and highest of several seeds."""
    return format_table(['', 'parameters', 'multiply-adds', 'mIoU'], [
        [name, f'{result["parameters"]:.2f} M', f'{result["multiply_adds"] / 1000:.2f} G',
         spread(result['seeds'].values())] for name, result in results.items()])


if __name__ == '__main__':
    main()
