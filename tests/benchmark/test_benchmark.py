"""The tool runs in each mode, at sizes where time means nothing."""

import json
import subprocess
import sys

import pytest
import torch

from evit_mm.benchmark import benchmark, forms
from evit_mm.cli import benchmark_parser
from evit_mm.errors import UserError


def run(*arguments):
    return benchmark(benchmark_parser().parse_args([str(argument) for argument in arguments]))


def test_a_backbone_and_its_peer(tmp_path, capsys):
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    rows = run('m0', 'timm://efficientvit_m0', '--shape', 64, 96, '--repeats', 2, '--dtype',
               'fp32', 'bf16', '--json', tmp_path / 'a.json')
    assert [str(row) for row in rows] == [
        'm0 eager fp32', 'm0 eager bf16', 'm0 deploy fp32', 'm0 deploy bf16',
        'timm://efficientvit_m0 eager fp32', 'timm://efficientvit_m0 eager bf16']
    assert rows[0].difference is None
    assert rows[2].difference < 1e-5 and rows[4].difference < 1e-5
    assert all(row.peak > 0 and row.floor > 0 and row.saved is None for row in rows)
    assert all(len(row.turns.totals) == 2 for row in rows)
    assert len({sum(row.macs.values()) for row in rows}) == 1  # the same network in all forms
    printed = capsys.readouterr().out
    assert 'ratio: to timm://efficientvit_m0 eager fp32' in printed
    assert 'convolution rate in bf16' in printed
    content = json.loads((tmp_path / 'a.json').read_text())
    assert content['settings']['versions']['torch'] == torch.__version__
    assert len(content['rows']) == 6 and content['rates']


def test_training_steps(capsys):
    rows = run('m0', '--mode', 'train', '--shape', 64, 64, '--batch', 2, '--repeats', 1,
               '--with-neck')
    assert [row.form.name for row in rows] == ['eager', 'folded']
    assert all(row.saved > 0 and list(row.turns.steps) == ['forward', 'backward'] for row in rows)
    assert rows[1].difference < 1e-5
    forward, backward = rows[0].macs.values()
    assert 1.9 < backward / forward < 2  # all gradients but the image's
    assert 'saved (MB)' in capsys.readouterr().out


def test_variants_of_a_config(repository, tmp_path, capsys):
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


def test_sizes_make_tables_and_lines(tmp_path, capsys):
    rows = run('m0', '--shapes', '64x64', '96x64', '--repeats', 1, '--forms', 'deploy',
               '--plot', tmp_path / 'a.png', '--channels-last')
    assert [row.shape for row in rows] == [(64, 64), (96, 64)]
    assert rows[1].peak > rows[0].peak and rows[1].form.layout == 'channels-last'
    assert (tmp_path / 'a.png').is_file()
    assert capsys.readouterr().out.count('interleaved runs') == 2


def test_a_failing_row_costs_the_others_nothing(monkeypatch, capsys):
    def no_compiler(*_):
        raise UserError('no compiler here')

    monkeypatch.setattr(forms, 'check_compiler', no_compiler)
    with pytest.raises(UserError, match='1 of 2 rows failed.*m0 compiled fp32: no compiler here'):
        run('m0', '--shape', 64, 64, '--repeats', 1, '--forms', 'eager', 'compiled')
    printed = capsys.readouterr().out
    assert 'failed: m0 compiled fp32: no compiler here' in printed
    assert ' 1.00 |' in printed.split('| m0    | eager')[1].split('\n')[0]


def test_peers_that_fail_are_no_error(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'timm', None)
    monkeypatch.setattr('evit_mm.benchmark.networks._PEERS_FOR_ALL', ())
    rows = run('m0', '--peers', '--shape', 64, 64, '--repeats', 1, '--forms', 'eager')
    assert rows[0].failure is None and 'needs timm' in rows[1].failure
    assert 'ratio: to m0 eager fp32' in capsys.readouterr().out


def test_mistakes_are_told(repository, tmp_path):
    configs = repository / 'configs'
    segmentor = configs / 'upernet_evit_m0_ade20k.py'
    for match, arguments in {
        'no such config': ('absent.py',),
        'there is no model \'m9\'': ('m9',),
        'second stage': (configs / 'mask_rcnn_evit_m0_coco.py',),
        'has no model': (configs / '_base_' / 'ade20k.py',),
        '--shape must be positive': (segmentor, '--shape', 0, 64),
        '--threads must be positive': (segmentor, '--threads', 0),
        '--repeats must be positive': (segmentor, '--repeats', 0),
        'no folder': (segmentor, '--json', tmp_path / 'absent' / 'x.json'),
        'is a folder': (segmentor, '--plot', tmp_path),
        '--device': (segmentor, '--device', 'quantum'),
        'varies one model': (segmentor, segmentor.with_name('upernet_evit_m1_ade20k.py'),
                             '--variant', 'x', 'a=1'),
        'in_channels': (segmentor, '--cfg-options', 'model.decode_head.in_channels=[1,2,3,4]'),
        'pass one of them': ('m0', '--shape', 64, 64, '--shapes', '64x64'),
        'deploy is no form of --mode train': ('m0', '--mode', 'train', '--forms', 'deploy'),
        '--cuda-graphs needs --device cuda': ('m0', '--cuda-graphs'),
        '--reference m7: there is no such row': ('m0', '--reference', 'm7'),
    }.items():
        with pytest.raises(UserError, match=match):
            run(*arguments)


@pytest.mark.parametrize(('arguments', 'sentence'), [
    (['absent.py'], 'error: no such config: absent.py\n'),
    pytest.param(['m0', '--shapes', '64'], "argument --shapes: '64' must be HEIGHTxWIDTH, such as "
                 '800x1344\n', marks=pytest.mark.slow),
])
def test_the_tool_ends_with_a_sentence(repository, tmp_path, arguments, sentence):
    done = subprocess.run([sys.executable, repository / 'tools' / 'benchmark.py', *arguments],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(sentence) and 'Traceback' not in done.stderr
