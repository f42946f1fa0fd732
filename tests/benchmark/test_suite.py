"""The table for a GPU, tried on the CPU at sizes where times mean nothing."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from evit_mm.benchmark import suite
from evit_mm.benchmark.forms import FORMS, PEER_FORMS, Form
from evit_mm.benchmark.measure import Row
from evit_mm.benchmark.suite import CASES, Case, benchmark_gpu, peer_ratio
from evit_mm.benchmark.timing import Timings
from evit_mm.cli import benchmark as command
from evit_mm.errors import UserError


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def row(model, form, milliseconds=None, arch=None):
    timings = Timings({'all': [milliseconds]}) if milliseconds else Timings({}, 'out of memory')
    return Row(model, form, (64, 64), arch, timings=timings)


def test_a_detector_and_a_case_without_time(tmp_path, small_statistics):
    detector, later = Case(('m4',), (64, 64), detector=True), Case(('m0',), (64, 96))
    rows = benchmark_gpu(out=tmp_path / 'new', device='cpu', repeats=1, budget=3600,
                         cases=[detector], report=(printed := []).append)
    assert [str(one) for one in rows] == [
        'm4 eager fp32', 'm4 eager bf16 channels-last', 'm4 deploy fp32',
        'm4 deploy bf16 channels-last', 'torchvision://resnet50 eager fp32',
        'torchvision://resnet50 eager bf16 channels-last']
    assert all(one.failure is None and one.preparation > 0 for one in rows)
    assert all(list(one.timings.steps) == ['backbone', 'neck', 'bbox_head'] for one in rows)
    assert rows[2].difference < 1e-5
    assert printed[0].startswith('RetinaNet on M4 inference 1 x 64x64: 6 of 6 rows')

    table = (tmp_path / 'new' / 'benchmark.md').read_text()
    lines = [[cell.strip() for cell in line.strip('|').split('|')]
             for line in table.splitlines() if line.startswith('|')]
    assert lines[2][:6] == ['RetinaNet, m4', 'inference', '1', '64x64', 'eager', 'fp32']
    assert lines[6][9:11] == ['', '1.00'] and lines[2][9] == '' and float(lines[2][10]) > 0
    content = json.loads((tmp_path / 'new' / 'benchmark.json').read_text())
    assert content['settings']['versions']['torch'] == torch.__version__ in table
    assert {one['detector'] for one in content['rows']} == {True}
    assert content['rows'][0]['to_resnet50'] == pytest.approx(float(lines[2][10]), abs=0.006)

    # Nothing is prepared any more, and everything is reported.
    rows = benchmark_gpu(out=tmp_path, device='cpu', budget=1e-9, cases=[detector, later])
    assert {one.failure for one in rows} == {'no time left'}
    table = (tmp_path / 'benchmark.md').read_text()
    assert '- not measured, no time left: RetinaNet on M4 inference 1 x 64x64 (6 rows)' in table
    assert '- not measured, no time left: M0 inference 1 x 64x96 (6 rows)' in table
    content = json.loads((tmp_path / 'benchmark.json').read_text())
    assert len(content['rows']) == 12 == len(rows) and content['rows'][0]['ms'] is None


def test_the_budget_ends_within_a_case(tmp_path, small_statistics, monkeypatch):
    """A row that has begun is finished, the rest of its case is not."""
    left = iter([1, 1, 1] + [-1] * 100)  # for the case and two rows

    class Clock:
        def __init__(self, _):
            pass

        @property
        def left(self):
            return next(left)

    monkeypatch.setattr(suite, 'Budget', Clock)
    monkeypatch.setattr(Case, 'peers', ())
    rows = benchmark_gpu(out=tmp_path, device='cpu', repeats=1, cases=[Case(('m0',), (64, 64))])
    assert [one.failure for one in rows] == [None, None, 'no time left', 'no time left']
    table = (tmp_path / 'benchmark.md').read_text()
    assert table.count('| no time left |') == 2 and 'not measured' not in table


def test_a_training_step(tmp_path, small_statistics, monkeypatch):
    monkeypatch.setattr(Case, 'peers', ())
    rows = benchmark_gpu(out=tmp_path, device='cpu', repeats=1,
                         cases=[Case(('m0',), (64, 64), 2, 'train')])
    assert [one.form.name for one in rows] == ['eager', 'eager', 'folded', 'folded']
    assert all(one.failure is None and one.saved > 0 for one in rows)
    entry = json.loads((tmp_path / 'benchmark.json').read_text())['rows'][0]
    assert entry['mode'] == 'train' and entry['batch'] == 2 and entry['to_timm'] is None


def test_failures_are_below_the_table(tmp_path, small_statistics, monkeypatch):
    def no_compiler(*_):
        raise UserError('no compiler here')

    monkeypatch.setattr('evit_mm.benchmark.forms.check_compiler', no_compiler)
    monkeypatch.setattr(Case, 'peers', ())
    case = Case(('m0',), (64, 64), compiled=True)
    rows = benchmark_gpu(out=tmp_path, device='cpu', repeats=1, cases=[case])
    assert [one.failure for one in rows] == ['no compiler here'] * 2
    table = (tmp_path / 'benchmark.md').read_text()
    assert table.count('| failed |') == 2 and '- failed: m0 compiled fp32: no compiler' in table


def test_ratios_are_to_the_eager_peer_in_the_same_dtype():
    bf16 = Form(dtype='bf16', layout='channels-last')
    graph = Form(dtype='bf16', layout='channels-last', graph=True)
    rows = [row('m4', Form('deploy'), 3, 'm4'), row('m4', bf16, 2, 'm4'),
            row('peer', Form(), 4), row('peer', graph, 1), row('peer', bf16, 8),
            row('broken', Form()), row('m4', Form())]
    assert [peer_ratio(one, rows, 'peer') for one in rows] == [
        0.75, 0.25, 1, 0.125, 1, None, None]
    assert peer_ratio(rows[0], rows, 'broken') is None is peer_ratio(rows[0], rows, 'absent')


def test_the_cases_cover_what_the_table_promises():
    assert len(set(CASES)) == len(CASES)
    for case in CASES:
        assert {form.name for form in case.forms} <= set(FORMS[case.mode])
        assert {form.name for form in case.peer_forms} <= set(PEER_FORMS[case.mode])
        assert {form.dtype for form in case.forms} == {'fp32', 'bf16'}
        assert any(form.graph for form in case.forms)
    sizes = {(case.detector, case.batch, case.shape) for case in CASES
             if case.mode == 'inference' and not case.compiled and 'm4' in case.archs}
    assert len(sizes) == 8  # backbone and detector, batch 1 and 16, small and large images
    assert {arch for case in CASES for arch in case.archs} == {'m0', 'm4', 'm5'}


def test_mistakes_are_reported(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(suite, 'measure', None)  # nothing may be measured
    for match, arguments in {
        '--suite gpu has models.*leave MODEL, --forms out': ('m0', '--suite', 'gpu', '--forms',
                                                             'eager'),
        'leave --with-neck out': ('--suite', 'gpu', '--with-neck'),
        '--budget must be positive': ('--suite', 'gpu', '--budget', 0),
        '--repeats must be positive': ('--suite', 'gpu', '--repeats', 0),
        '--budget and --out belong to --suite': ('m0', '--budget', 3, '--out', tmp_path),
        'nothing to measure: name a MODEL': (),
        "can't write .*file.x: .*--out needs another folder": (
            '--suite', 'gpu', '--device', 'cpu', '--out', tmp_path / 'file' / 'x'),
    }.items():
        with pytest.raises(UserError, match=match):
            run(*arguments)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='^--device cuda: '):
            run('--suite', 'gpu', '--out', tmp_path)


def test_the_command_fails_where_a_row_of_ours_does(monkeypatch):
    failed, peer = row('m0', Form('compiled')), row('peer', Form())
    peer.peer, peer.timings.failure = True, 'timm is not installed'
    calls = []
    monkeypatch.setattr('evit_mm.benchmark.benchmark_gpu',
                        lambda **options: calls.append(options) or [failed, peer])
    run('--suite', 'gpu', '--budget', 9, '--repeats', 2, '--out', 'x', '--threads', 1)
    assert calls[0].pop('report') and calls == [dict(
        out=Path('x'), device='cuda', budget=9, repeats=2, threads=1, seed=0)]
    failed.timings.failure = 'no compiler here'
    with pytest.raises(UserError, match='1 of 2 rows failed, the first is m0 compiled fp32: no co'):
        run('--suite', 'gpu', '--device', 'cpu')


def test_an_interrupted_run_has_reported_all_rows(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, 'build_networks', interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmark_gpu(out=tmp_path, device='cpu')
    rows = json.loads((tmp_path / 'benchmark.json').read_text())['rows']
    assert len(rows) > 100 and {one['failure'] for one in rows} == {'no time left'}
    assert (tmp_path / 'benchmark.md').read_text().count('- not measured') == len(CASES)
