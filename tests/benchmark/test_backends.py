"""Exported files are timed beside PyTorch."""

import pytest
from small_models import small_config

from evit_mm.benchmark import backends
from evit_mm.benchmark.backends import BackendTime, _table, benchmark_backends
from evit_mm.cli.main import main
from evit_mm.errors import UserError


def test_the_table_has_ratios_to_the_first_backend():
    rows = [BackendTime('a', 'torch', (64, 64), 20.0, (19.0, 21.0)),
            BackendTime('a', 'openvino', (64, 64), 5.0, (4.0, 6.0)),
            BackendTime('a', 'onnxruntime', (64, 64), float('nan'), (0.0, 0.0), 'it is missing')]
    lines = _table(rows, (64, 64)).splitlines()
    assert lines[2].split('|')[-2].strip() == 'to torch'
    assert [line.split(' | ')[-1].strip(' |') for line in lines[4:6]] == ['1.00', '0.25']
    assert 'failed' in lines[6] and lines[-1] == 'a, onnxruntime: it is missing'


def test_the_table_has_ratios_to_the_first_model():
    rows = [BackendTime(model, backend, (64, 64), time, (time, time))
            for model, times in (('a/b.py', (20.0, 5.0)), ('mmdet::c/d.py', (10.0, 4.0)))
            for backend, time in zip(('torch', 'openvino'), times, strict=True)]
    header, _, *lines = _table(rows, (64, 64)).splitlines()[2:]
    assert [cell.strip() for cell in header.split('|')[1:-1]] == [
        'model', 'backend', 'ms', 'quartiles', 'to torch', 'to b']
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    assert [(row[0], *row[4:]) for row in cells] == [
        ('b', '1.00', '1.00'), ('b', '0.25', '1.00'), ('d', '1.00', '0.50'), ('d', '0.40', '0.80')]


def test_models_take_turns_in_one_run(monkeypatch):
    """Of two models, neither is timed twice before the other."""
    calls = []
    monkeypatch.setattr(backends, '_action',
                        lambda source, *_: lambda image: calls.append(source))
    rows = benchmark_backends(['m0', 'm1'], ['torch'], shapes=[(64, 64)], repeats=4)
    assert [(row.model, row.milliseconds > 0) for row in rows] == [('m0', True), ('m1', True)]
    turns = calls[::2]
    assert turns == calls[1::2]  # a run that is not timed precedes each
    assert len(turns) == 2 * 7  # three rounds of warming up
    assert all(set(turns[i:i + 2]) == {'m0', 'm1'} for i in range(0, 14, 2))


def test_an_unknown_backend():
    with pytest.raises(UserError, match='no such backend: tensorrt; choose torch'):
        benchmark_backends(['m0'], ['tensorrt'], shapes=[(64, 64)])


def test_flags_of_other_measurements_are_refused(capsys):
    assert main(['benchmark', 'm0', '--backend', 'torch', '--dtype', 'bf16', '--with-neck']) == 2
    assert 'leave --dtype, --with-neck out' in capsys.readouterr().err
    assert main(['benchmark', 'm0', '--checkpoint', 'a.pth']) == 2
    assert '--checkpoint belongs to --backend' in capsys.readouterr().err


@pytest.mark.slow
def test_a_detector_is_timed_in_all_runtimes(tmp_path):
    small_config('retinanet').dump(tmp_path / 'config.py')
    tables = []
    names = ('torch', 'onnxruntime', 'openvino', 'openvino-bf16', 'openvino-int8')
    rows = benchmark_backends([str(tmp_path / 'config.py')], names, shapes=[(64, 96)],
                              repeats=2, report=tables.append)
    assert [row.backend for row in rows] == list(names)
    assert not [row.failure for row in rows if row.failure]
    assert all(row.milliseconds > 0 for row in rows)
    assert '64x96' in tables[0]
