"""Exported files are timed beside PyTorch."""

import pytest
from small_models import small_config

from evit_mm.benchmark.backends import BackendTime, _table, benchmark_backends
from evit_mm.cli.main import main
from evit_mm.errors import UserError


def test_the_table_has_ratios_to_the_first_backend():
    rows = [BackendTime('a', 'torch', (64, 64), 20.0, (19.0, 21.0)),
            BackendTime('a', 'openvino', (64, 64), 5.0, (4.0, 6.0)),
            BackendTime('a', 'onnxruntime', (64, 64), float('nan'), (0.0, 0.0), 'it is missing')]
    lines = _table(rows, (64, 64)).splitlines()
    assert [line.split(' | ')[-1].strip(' |') for line in lines[4:6]] == ['1.00', '0.25']
    assert 'failed' in lines[6] and lines[-1] == 'a, onnxruntime: it is missing'


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
    backends = ('torch', 'onnxruntime', 'openvino', 'openvino-bf16', 'openvino-int8')
    rows = benchmark_backends([str(tmp_path / 'config.py')], backends, shapes=[(64, 96)],
                              repeats=2, report=tables.append)
    assert [row.backend for row in rows] == list(backends)
    assert not [row.failure for row in rows if row.failure]
    assert all(row.milliseconds > 0 for row in rows)
    assert '64x96' in tables[0]
