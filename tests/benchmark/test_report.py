"""Tables, references and files for made-up rows."""

import json

import pytest

from evit_mm.benchmark.forms import DTYPES, FORMS, LAYOUTS, PEER_FORMS, Form
from evit_mm.benchmark.measure import Rate, Row
from evit_mm.benchmark.plot import plot
from evit_mm.benchmark.report import (
    format_parts,
    format_rates,
    format_rows,
    ratio,
    reference_of,
    write_json,
)
from evit_mm.benchmark.roofline import Convolution
from evit_mm.benchmark.timing import Timings
from evit_mm.cli.benchmark import _DTYPES, _FORMS, _LAYOUTS, _MODES, _PEER_FORMS
from evit_mm.errors import UserError


def row(model, form='eager', dtype='fp32', times=(10.0, 20.0, 40.0), *, arch=None, shape=(64, 96),
        failure=None, **more):
    return Row(model, Form(form, dtype), shape, arch,
               timings=Timings({'backbone': list(times)}, failure), params={'backbone': 2_000_000},
               macs={'backbone': 3_000_000_000}, **more)


@pytest.fixture
def rows():
    return [row('m0', arch='m0'), row('m0', 'deploy', times=(5, 5, 5), arch='m0', floor=2.5,
                                      peak=7_000_000, difference=3e-6),
            row('m4', arch='m4', times=(60, 60, 60)),
            row('timm://efficientvit_m0', dtype='bf16', arch='m0'),
            row('timm://efficientvit_m0', times=(50, 50, 50), arch='m0'),
            row('timm://efficientvit_m4', times=(100, 100, 100), arch='m4'),
            row('torchvision://resnet50', times=(200, 200, 200)),
            row('m0', 'compiled', arch='m0', failure='needs a compiler', times=())]


def test_ratios_are_to_timm_of_the_same_variant(rows):
    assert [ratio(one, rows) for one in rows] == [0.4, 0.1, 0.6, 0.4, 1, 1, 4, None]
    assert ratio(rows[1], rows[:4]) == 0.25  # no timm in eager float32: to the first row
    assert ratio(rows[1], rows, 'm0') == 0.25 and ratio(rows[2], rows, 'm0 deploy fp32') == 12
    assert ratio(rows[0], rows, 'm0 compiled fp32') is None
    with pytest.raises(UserError, match='m7: no such row; the rows are m0 eager fp32, m0 dep'):
        reference_of(rows[0], rows, 'm7')


def test_the_table(rows):
    table, failure = format_rows(rows).rsplit('\n', 1)
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.split('\n')]
    assert lines[0] == ['model', 'form', 'dtype', 'params (M)', 'multiply-adds (G)', 'ms',
                        'quartiles', 'ratio', 'x floor', 'peak (MB)', 'difference']
    assert lines[2] == ['m0', 'eager', 'fp32', '2.00', '3.00', '20.0', '15.0 to 30.0', '0.40', '',
                        '', '']
    assert lines[3] == ['m0', 'deploy', 'fp32', '2.00', '3.00', '5.00', '5.00 to 5.00', '0.10',
                        '2.00', '7.0', '3e-06']
    assert lines[-1][5:] == ['failed', '', '', '', '', '']
    assert failure == 'failed: m0 compiled fp32: needs a compiler'
    trained = [row('m0', saved=5_000_000), row('m0', layout_of := 'eager')]
    trained[1].form = Form(layout_of, layout='channels-last')
    head = format_rows(trained).split('\n')[0]
    assert 'saved (MB)' in head and 'layout' in head


def test_parts():
    one = row('config')
    assert format_parts([one]) == ''
    one.timings = Timings({'backbone': [1, 3, 2], 'neck': [4, 4, 4]})
    one.params, one.macs = {'backbone': 10**6, 'neck': 2 * 10**6}, {'backbone': 10**9,
                                                                    'neck': 4 * 10**9}
    cells = [[cell.strip() for cell in line.strip('|').split('|')][2:]
             for line in format_parts([one]).split('\n')[2:]]
    assert cells == [['backbone', '1.00', '1.00', '1.00', '2.00'],
                     ['neck', '2.00', '4.00', '4.00', '4.00'],
                     ['all', '3.00', '5.00', '5.00', '6.00']]


def test_files(rows, tmp_path):
    conv = Convolution((1, 3, 8, 8), (4, 3, 1, 1), (1, 1), (0, 0), 768)
    rates = [Rate(conv, 'fp32', (64, 96), 5e9), Rate(conv, 'fp32', (64, 96), 4e9)]
    assert format_rates(rates) == ('convolution rate in fp32: 5.0 G multiply-adds a second '
                                   '(1x1 to 4 channels, stride 1, of 1x3x8x8)')
    write_json(tmp_path / 'a.json', {'batch': 1}, [(rows, rates)])
    content = json.loads((tmp_path / 'a.json').read_text())
    assert content['settings'] == {'batch': 1} and len(content['rates']) == 2
    deployed, failed = content['rows'][1], content['rows'][-1]
    assert deployed['times'] == {'backbone': [5, 5, 5]} and deployed['ratio'] == 0.1
    assert deployed['reference'] == 'timm://efficientvit_m0 eager fp32'
    assert (deployed['name'], deployed['dtype'], deployed['floor_ms']) \
        == ('m0 deploy fp32', 'fp32', 2.5)
    assert failed['failure'] == 'needs a compiler' and failed['ms'] is None
    plot(tmp_path / 'bars.png', [rows])
    larger = [row('m0', shape=(128, 96), peak=10), row('m0', 'deploy', failure='x', times=())]
    plot(tmp_path / 'lines.png', [rows, larger])
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ('bars.png', 'lines.png'))


def test_the_flags_have_all_choices():
    """The command line has copies of them, because the import is slow."""
    assert set(_MODES) == set(FORMS) == set(PEER_FORMS)
    assert set(_FORMS) == {form for names in FORMS.values() for form in names}
    assert set(_PEER_FORMS) == {form for names in PEER_FORMS.values() for form in names}
    assert set(_DTYPES) == set(DTYPES) and set(_LAYOUTS) == set(LAYOUTS)
