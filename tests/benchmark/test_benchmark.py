"""The benchmark runs in each mode, at sizes where times mean nothing."""

import argparse
import json
import sys

import pytest
import torch

from evit_mm.benchmark import benchmark, forms
from evit_mm.cli import benchmark as command
from evit_mm.cli.main import run_tool
from evit_mm.errors import UserError


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_a_backbone_and_its_peer(tmp_path):
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    tables = []
    rows = benchmark(['m0', 'timm://efficientvit_m0'], shapes=[(64, 96)], repeats=2,
                     dtypes=['fp32', 'bf16'], json=tmp_path / 'a.json', report=tables.append)
    assert [str(row) for row in rows] == [
        'm0 eager fp32', 'm0 eager bf16', 'm0 deploy fp32', 'm0 deploy bf16',
        'timm://efficientvit_m0 eager fp32', 'timm://efficientvit_m0 eager bf16']
    assert rows[0].difference is None
    assert rows[2].difference < 1e-5 and rows[4].difference < 1e-5
    assert all(row.peak > 0 and row.floor > 0 and row.saved is None for row in rows)
    assert all(len(row.timings.totals) == 2 for row in rows)
    assert len({sum(row.macs.values()) for row in rows}) == 1  # of the network as built
    table, = tables
    assert 'ratio: to timm://efficientvit_m0 eager fp32' in table
    assert 'convolution rate in bf16' in table
    content = json.loads((tmp_path / 'a.json').read_text())
    assert content['settings']['versions']['torch'] == torch.__version__
    assert content['settings']['shapes'] == [[64, 96]]
    assert len(content['rows']) == 6 and content['rates']


def test_training_steps(capsys, small_statistics):
    rows = benchmark(['m0'], mode='train', shapes=[(64, 64)], batch=2, repeats=1, with_neck=True,
                     forms=['eager', 'folded', 'efficient'], report=print)
    assert [row.form.name for row in rows] == ['eager', 'folded', 'efficient']
    assert all(list(row.timings.steps) == ['forward', 'backward'] for row in rows)
    assert 0 < rows[1].saved < min(rows[0].saved, rows[2].saved)
    assert rows[1].difference < 1e-5 and rows[2].difference < 1e-5
    forward, backward = rows[0].macs.values()
    assert 1.9 < backward / forward < 2  # all gradients but that of the image
    assert 'saved (MB)' in capsys.readouterr().out


def test_variants_of_a_config(repository, tmp_path, capsys, small_statistics):
    config = repository / 'configs' / 'upernet_evit_m0_ade20k.py'
    run(config, '--shape', 64, 64, '--repeats', 1, '--forms', 'eager', '--json',
        tmp_path / 'out.json', '--variant', 'narrow', 'model.decode_head.channels=32',
        '--variant', 'windows of 7', 'model.backbone.window_sizes=7')
    printed = capsys.readouterr().out
    macs = {row['model']: row['macs']
            for row in json.loads((tmp_path / 'out.json').read_text())['rows']}
    assert macs['narrow']['decode_head'] < macs[config.stem]['decode_head']
    assert macs['narrow']['backbone'] == macs[config.stem]['backbone']
    assert macs['windows of 7']['backbone'] != macs[config.stem]['backbone']
    assert printed.count('| narrow ') == 4 and '| decode_head |' in printed


def test_several_sizes(tmp_path, capsys, small_statistics):
    run('m0', '--shapes', '64x64', '96x64', '--repeats', 1, '--forms', 'deploy', '--json',
        tmp_path / 'a.json', '--plot', tmp_path / 'a.png', '--channels-last')
    small, large = json.loads((tmp_path / 'a.json').read_text())['rows']
    assert (small['shape'], large['shape']) == ([64, 64], [96, 64])
    assert large['peak_bytes'] > small['peak_bytes'] and large['layout'] == 'channels-last'
    assert (tmp_path / 'a.png').is_file()
    assert capsys.readouterr().out.count('interleaved runs') == 2


def test_other_rows_are_measured_after_a_failure(monkeypatch, capsys, small_statistics):
    def no_compiler(*_):
        raise UserError('no compiler here')

    monkeypatch.setattr(forms, 'check_compiler', no_compiler)
    with pytest.raises(UserError, match='1 of 2 rows failed.*m0 compiled fp32: no compiler here'):
        run('m0', '--shape', 64, 64, '--repeats', 1, '--forms', 'eager', 'compiled')
    printed = capsys.readouterr().out
    assert 'failed: m0 compiled fp32: no compiler here' in printed
    assert ' 1.00 |' in printed.split('| m0    | eager')[1].split('\n')[0]


def test_added_peers_may_fail(monkeypatch, capsys, small_statistics):
    monkeypatch.setitem(sys.modules, 'timm', None)
    monkeypatch.setattr('evit_mm.benchmark.networks._PEERS_FOR_ALL', ())
    run('m0', '--peers', '--shape', 64, 64, '--repeats', 1, '--forms', 'eager')
    printed = capsys.readouterr().out
    assert 'failed: timm://efficientvit_m0 eager fp32: timm://efficientvit_m0 needs timm' in printed
    assert 'ratio: to m0 eager fp32' in printed


def test_mistakes_are_reported(repository, tmp_path, small_statistics):
    configs = repository / 'configs'
    segmentor = configs / 'upernet_evit_m0_ade20k.py'
    for match, arguments in {
        'no such config': ('absent.py',),
        'no such model: m9': ('m9',),
        'second stage': (configs / 'mask_rcnn_evit_m0_coco.py',),
        'has no model': (configs / '_base_' / 'ade20k.py',),
        '--shape must be positive': (segmentor, '--shape', 0, 64),
        '--threads must be positive': (segmentor, '--threads', 0),
        '--repeats must be positive': (segmentor, '--repeats', 0),
        'no such folder': (segmentor, '--json', tmp_path / 'absent' / 'x.json'),
        'is a folder': (segmentor, '--plot', tmp_path),
        '--device': (segmentor, '--device', 'quantum'),
        'needs a single model': (segmentor, segmentor.with_name('upernet_evit_m1_ade20k.py'),
                                 '--variant', 'x', 'a=1'),
        'in_channels|expected input': (segmentor, '--cfg-options',
                                       'model.decode_head.in_channels=[1,2,3,4]'),
        '--forms deploy is not possible with --mode train': ('m0', '--mode', 'train', '--forms',
                                                             'deploy'),
        '--peer-forms fused is not possible with --mode train': ('m0', '--mode', 'train',
                                                                 '--peer-forms', 'fused'),
        '--cuda-graphs needs --device cuda': ('m0', '--cuda-graphs'),
        '--peers needs a backbone': (segmentor, '--peers'),
        '--reference m7: no such row': ('m0', '--reference', 'm7'),
    }.items():
        with pytest.raises(UserError, match=match):
            run(*arguments)


@pytest.mark.parametrize(('arguments', 'sentence'), [
    (['absent.py'], 'error: no such config: absent.py'),
    (['m0', '--shapes', '64'],
     "argument --shapes: '64' must be HEIGHTxWIDTH, such as 800x1344\n"),
    (['m0', '--shape', '64', '64', '--shapes', '64x64'], 'not allowed with argument --shape\n'),
    (['m0', '--variant', 'window_sizes=8'],
     '--variant needs a title before the KEY=VALUE pairs, but got window_sizes=8\n'),
    (['m0', '--variant', 'x', '8'], '--variant takes KEY=VALUE pairs, but got 8\n'),
])
def test_the_tool_ends_with_a_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    try:
        status = run_tool('benchmark', arguments)
    except SystemExit as error:  # argparse's
        status = error.code
    assert status == 2
    printed = capsys.readouterr().err
    assert sentence in printed and 'Traceback' not in printed
