"""What the benchmark counts is what a model has and does."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from evit_mm.analysis import measure
from evit_mm.analysis.benchmark import benchmark
from evit_mm.cli import benchmark_parser
from evit_mm.errors import UserError


class Toy(nn.Module):
    """Parts whose costs can be reckoned by hand."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.neck = nn.Conv2d(8, 4, 1)
        self.decode_head = nn.Conv2d(4, 2, 1)
        self.auxiliary_head = nn.Conv2d(8, 2, 1)


def test_parts_are_counted_by_hand():
    costs = measure({'toy': Toy().eval()}, torch.zeros(2, 3, 10, 12), repeats=3, progress=False)
    pixels = 2 * 10 * 12
    found = {cost.part: (cost.params, cost.macs) for cost in costs}
    assert found == {
        'backbone': (216, 216 * pixels), 'neck': (36, 32 * pixels),
        'decode_head': (10, 8 * pixels), 'all': (262, 256 * pixels)}  # training alone runs the rest
    assert all(cost.milliseconds > 0 and cost.model == 'toy' for cost in costs)
    total = {cost.part: cost.milliseconds for cost in costs}
    assert total['all'] > total['backbone']


def run(repository, *arguments):
    return benchmark(benchmark_parser().parse_args([str(argument) for argument in arguments]))


def test_variants_of_a_config(repository, tmp_path, capsys):
    config = repository / 'configs' / 'upernet_evit_m0_ade20k.py'
    run(repository, config, '--shape', 64, 64, '--repeats', 1, '--json', tmp_path / 'out.json',
        '--variant', 'narrow', 'model.decode_head.channels=32', '--variant', 'windows of 7',
        'model.backbone.window_sizes=7')
    printed = capsys.readouterr().out
    costs = json.loads((tmp_path / 'out.json').read_text())
    macs = {(cost['model'], cost['part']): cost['macs'] for cost in costs}
    assert macs['narrow', 'decode_head'] < macs[config.stem, 'decode_head']
    assert macs['narrow', 'backbone'] == macs[config.stem, 'backbone']
    assert macs['windows of 7', 'backbone'] != macs[config.stem, 'backbone']
    assert printed.count('| narrow |') == 3 and '| windows of 7 | backbone |' in printed


def test_mistakes_are_told(repository, tmp_path):
    configs = repository / 'configs'
    segmentor = configs / 'upernet_evit_m0_ade20k.py'
    for match, arguments in {
        'no such config': ('absent.py',),
        'second stage': (configs / 'mask_rcnn_evit_m0_coco.py',),
        'has no model': (configs / '_base_' / 'ade20k.py',),
        '--shape must be positive': (segmentor, '--shape', 0, 64),
        'no folder': (segmentor, '--json', tmp_path / 'absent' / 'x.json'),
        '--device': (segmentor, '--device', 'quantum'),
        'varies one config': (segmentor, segmentor, '--variant', 'x', 'a=1'),
        'in_channels': (segmentor, '--cfg-options', 'model.decode_head.in_channels=[1,2,3,4]'),
    }.items():
        with pytest.raises(UserError, match=match):
            run(repository, *arguments)


def test_the_tool_ends_with_a_sentence(repository, tmp_path):
    done = subprocess.run([sys.executable, repository / 'tools' / 'benchmark.py', 'absent.py'],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == 'error: no such config: absent.py\n'
