"""The environments of `make test-matrix`: what they claim, and how their results are kept."""

import importlib.util
import platform
import re
import sys
import venv
from pathlib import Path

import pytest

from evit_mm.errors import UserError

MATRIX = Path(__file__).resolve().parents[2] / 'requirements' / 'matrix.py'


@pytest.fixture
def matrix(monkeypatch, tmp_path):
    """The runner, with its results and its page in a folder of the test."""
    spec = importlib.util.spec_from_file_location('matrix', MATRIX)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'FOLDER', tmp_path)
    monkeypatch.setattr(module, 'PAGE', tmp_path / 'versions.md')
    module.PAGE.write_text('# Versions\n\nProse.\n')
    return module


def pins(row) -> dict[str, str]:
    return dict(requirement.split('==') for requirement in row.requirements if '==' in requirement)


def result(row, passed=7, failed=0, **packages):
    versions = {name: {usual: '1.0'} for name, usual in {
        'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy',
        'cv2': 'opencv-python-headless', 'mmengine': 'mmengine', 'mmcv': 'mmcv-lite',
        'mmdet': 'mmdet', 'mmseg': 'mmsegmentation'}.items()}
    return {'row': row.contents(), 'python': '3.12.1', 'packages': {**versions, **packages},
            'passed': passed, 'failed': failed, 'skipped': 2, 'seconds': 9, 'date': '2026-11-27'}


def test_the_bounds_are_those_of_rows(matrix, repository):
    text = (repository / 'pyproject.toml').read_text()
    rows = matrix.read_matrix()
    oldest = pins(rows['oldest'])
    for name, lowest in re.findall(r'"([\w-]+)>=([\d.]+),<', re.search(
            r'^torch = .*?^mm = \[.*?\]', text, re.M | re.S)[0]):
        assert re.fullmatch(rf'{re.escape(lowest)}(\.0)*', oldest[name]), name
    newest = pins(rows['newest'])
    for name in ('torch', 'torchvision'):
        major, minor = map(int, re.search(rf'"{name}>=[\d.]+,<(\d+)\.(\d+)"', text).groups())
        assert newest[name].startswith(f'{major}.{minor - 1}.'), name


def test_every_python_that_is_claimed_has_a_row(matrix, repository):
    pyproject = (repository / 'pyproject.toml').read_text()
    low, above = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"',
                                    pyproject).groups())
    claimed = {f'3.{minor}' for minor in range(low, above)}
    rows = matrix.read_matrix().values()
    assert claimed == {row.python for row in rows if not row.when_named}
    assert claimed == set(re.findall(r':: Python :: (3\.\d+)"', pyproject))
    makefile = (repository / 'Makefile').read_text()
    assert f'not (3, {low}) <= sys.version_info[:2] <= (3, {above - 1})' in makefile
    assert claimed == set(re.findall(r'\bpython(3\.\d+)(?= |;)',
                                     re.search(r'for python in.*', makefile)[0]))
    for page in ('Makefile', 'README.md', 'CONTRIBUTING.md', 'docs/get-started.md',
                 'docs/versions.md'):
        assert f'Python 3.{low} to 3.{above - 1}' in ' '.join(
            (repository / page).read_text().replace('# ', '').replace('\\\n', '').split()), page


def test_the_page_has_rows_of_the_matrix_alone(matrix, repository):
    _, head, table = (repository / 'docs' / 'versions.md').read_text().partition('\n| row |')
    lines = f'| row |{table}'.splitlines()
    assert head and lines[0] == f'| {" | ".join(matrix.COLUMNS)} |'
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert len(cells) == len(matrix.COLUMNS) and cells[0] in matrix.read_matrix()
        assert re.fullmatch(r'\d{4}-\d\d-\d\d', cells[-1])


def test_a_finished_row_is_run_again_only_when_named_or_changed(matrix, monkeypatch, capsys):
    ran = []

    def run_row(row, tests=()):
        ran.append(row.name)
        return result(row)

    monkeypatch.setattr(matrix, 'run_row', run_row)
    everything = [row.name for row in matrix.read_matrix().values() if not row.when_named]
    assert matrix.run_rows([], []) == 0 and ran == everything
    assert f'{everything[0]}: 7 passed, 0 failed, 2 skipped, 9 s\n' in capsys.readouterr().out

    ran.clear()
    assert matrix.run_rows([], []) == 0 and ran == []
    assert capsys.readouterr().out.count('(run on 2026-11-27; ROW=') == len(everything)
    assert matrix.run_rows(['oldest'], []) == 0 and ran == ['oldest']

    ran.clear()
    rows = matrix.read_matrix()
    rows['lock'] = rows['lock']._replace(requirements=('numpy<2',))
    monkeypatch.setattr(matrix, 'read_matrix', lambda: rows)
    assert matrix.run_rows([], []) == 0 and ran == ['lock']


def test_a_part_of_the_suite_is_not_recorded(matrix, monkeypatch):
    monkeypatch.setattr(matrix, 'run_row', lambda row, tests: result(row))
    before = matrix.PAGE.read_text()
    assert matrix.run_rows(['oldest'], ['tests/models']) == 0
    assert matrix.PAGE.read_text() == before and not (matrix.FOLDER / 'results.json').exists()


def test_a_row_that_fails_does_not_stop_the_others(matrix, monkeypatch, capsys):
    def run_row(row, tests=()):
        if row.name == 'oldest':
            raise UserError('no Python 3.10')
        return result(row, failed=int(row.name == 'newest'))

    monkeypatch.setattr(matrix, 'run_row', run_row)
    assert matrix.run_rows([], []) == 1
    assert 'oldest: not run: no Python 3.10\n' in capsys.readouterr().out
    recorded = matrix.read_json(matrix.FOLDER / 'results.json')
    assert 'oldest' not in recorded and recorded['newest']['failed'] == 1 and 'lock' in recorded
    assert matrix.run_rows(['lock'], []) == 0
    assert matrix.run_rows([], []) == 1  # the failures of a finished row still count


def test_an_unknown_row_is_named(matrix):
    with pytest.raises(UserError, match=r'^no such row: neuest \(.*oldest, lock, newest'):
        matrix.run_rows(['neuest'], [])


@pytest.mark.parametrize('content, message', [
    ('[rows.a]\npython = ', 'is not valid TOML: '),
    ('[rows.a]\nfiles = []', "row 'a' of .* has no field \"python\": "),
    ('[rows.a]\npython = "3.10"\npins = []', "row 'a' of .* has the unknown field 'pins': "),
])
def test_mistakes_in_the_matrix_are_named(matrix, tmp_path, content, message):
    (tmp_path / 'matrix.toml').write_text(content)
    with pytest.raises(UserError, match=message):
        matrix.read_matrix(tmp_path / 'matrix.toml')


def test_a_page_keeps_other_rows_and_the_order_of_the_matrix(matrix):
    rows = matrix.read_matrix()
    lines = matrix.table({name: result(row) for name, row in rows.items()})
    order = list(rows)
    matrix.write_page(matrix.PAGE, {'newest': lines['newest']}, order)
    matrix.write_page(matrix.PAGE, {'oldest': lines['oldest'], 'gone': '| gone | |'}, order)
    changed = matrix.table({'newest': result(rows['newest'], passed=8)})
    matrix.write_page(matrix.PAGE, changed, order)
    start, _, written = matrix.PAGE.read_text().partition('\n\n| row |')
    assert start == '# Versions\n\nProse.'
    assert written.splitlines()[2:] == [lines['oldest'], changed['newest']]


def test_the_table_names_an_unusual_provider(matrix):
    row = matrix.read_matrix()['onedl']
    line = matrix.table({'onedl': result(row, mmcv={'onedl-mmcv': '2.3'}, mmseg={},
                                         cv2={'opencv-python': '5', 'opencv-python-headless': '4'})
                         })['onedl']
    assert line == ('| onedl | 3.12.1 | 1.0 | 1.0 | 1.0 | opencv-python 5 and 4 | 1.0 | '
                    'onedl-mmcv 2.3 | 1.0 | none | 7 | 0 | 2 | 2026-11-27 |')


def test_the_providers_of_modules_are_found(matrix, tmp_path):
    venv.create(tmp_path / 'environment', with_pip=False)
    site_packages = next((tmp_path / 'environment').glob('lib/python*/site-packages'))
    for name, version, files in (
            ('numpy', '1.26.4', {'RECORD': 'numpy/__init__.py,,\nnumpy/linalg/linalg.py,,\n'}),
            ('onedl-mmcv', '2.3.6', {'RECORD': 'mmcv/__init__.py,,\n',
                                     'top_level.txt': 'mmcv\n'}),
            ('other', '1.0', {})):
        folder = site_packages / f'{name}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\n'
                                         f'Version: {version}\n')
        for file, text in files.items():
            (folder / file).write_text(text)
    for file in ('numpy/__init__.py', 'numpy/linalg/linalg.py', 'mmcv/__init__.py'):
        path = site_packages / file  # Python 3.12 leaves out files that are missing
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert matrix.versions(tmp_path / 'environment' / 'bin' / 'python', matrix.PACKAGES) == {
        'python': platform.python_version(),
        'packages': {**dict.fromkeys(matrix.PACKAGES, {}), 'numpy': {'numpy': '1.26.4'},
                     'mmcv': {'onedl-mmcv': '2.3.6'}}}


def test_errors_count_as_failures(matrix, tmp_path):
    report = tmp_path / 'report.xml'
    report.write_text('<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3"/>'
                      '</testsuites>')
    assert matrix.count(report) == {'passed': 3, 'failed': 3, 'skipped': 3}


def test_commands_get_nothing_of_this_environment(matrix, monkeypatch, tmp_path):
    monkeypatch.setenv('PYTHONPATH', '/elsewhere')
    log = tmp_path / 'log'
    code = 'import os; print(os.environ.get("PYTHONPATH"), os.environ["X"]); raise SystemExit(1)'
    matrix._run([sys.executable, '-c', code], log, accept=(0, 1), X='here')
    assert log.read_text() == 'None here\n'
    with pytest.raises(UserError, match=f'ended with status 1: see {log}$'):
        matrix._run([sys.executable, '-c', code], log, X='here')
