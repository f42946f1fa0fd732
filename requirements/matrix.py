"""Run the test suite in the environments of requirements/matrix.toml; `make test-matrix` calls it.

A row whose suite has run to its end is recorded in work_dirs/versions/results.json, and not run
again unless it is named or its table changes. What is recorded goes into the table of
docs/versions.md. Logs and environments are in work_dirs/versions/ROW.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from evit_mm.errors import UserError
from evit_mm.files import read_json, write_atomically, write_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # in the lock file, as pytest needs it there

REPOSITORY = Path(__file__).resolve().parents[1]
MATRIX = REPOSITORY / 'requirements' / 'matrix.toml'
OVERRIDES = REPOSITORY / 'requirements' / 'overrides.txt'
FOLDER = REPOSITORY / 'work_dirs' / 'versions'
PAGE = REPOSITORY / 'docs' / 'versions.md'

# What is imported, and the distribution that usually provides it; the table names any other.
PACKAGES = {
    'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy',
    'cv2': 'opencv-python-headless', 'mmengine': 'mmengine', 'mmcv': 'mmcv-lite',
    'mmdet': 'mmdet', 'mmseg': 'mmsegmentation',
}
COLUMNS = ('row', 'Python', *PACKAGES.values(), 'passed', 'failed', 'skipped', 'date')

# The wheels of some packages, such as numpy 1.26, do not list their modules in top_level.txt: they
# are where their files are. Python's packages_distributions does so only since 3.11.
_VERSIONS = """
import json, platform
from importlib.metadata import distributions
versions = {name: {} for name in NAMES}
for distribution in distributions():
    listed = (distribution.read_text('top_level.txt') or '').split()
    for name in set(listed or [file.parts[0] for file in distribution.files or []]) & set(versions):
        versions[name].setdefault(distribution.metadata['Name'], distribution.version)
print(json.dumps({'python': platform.python_version(), 'packages': {
    name: dict(sorted(providers.items())) for name, providers in versions.items()}}))
"""


class Row(NamedTuple):
    """An environment of matrix.toml, which explains the fields."""

    name: str
    python: str
    extras: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    compile: tuple[str, ...] = ()
    when_named: bool = False

    def contents(self) -> dict[str, Any]:
        """Return what decides whether a recorded run still stands, as JSON gives it back."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in self._asdict().items() if name not in ('name', 'when_named')}


def read_matrix(path: Path = MATRIX) -> dict[str, Row]:
    """Return the rows of a matrix file by name, with its tools among their requirements.

    Raises:
        UserError: If the file isn't TOML, or a row has an unknown field or none for its Python.
    """
    try:
        matrix = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f'{path} is not valid TOML: {error}') from error
    rows = {}
    for name, table in matrix['rows'].items():
        unknown = set(table) - set(Row._fields[1:])
        if unknown or 'python' not in table:
            problem = f'the unknown field {min(unknown)!r}' if unknown else 'no field "python"'
            raise UserError(f'row {name!r} of {path} has {problem}: the comment at the top of the '
                            'file lists the fields')
        fields = {key: tuple(value) if isinstance(value, list) else value
                  for key, value in table.items()}
        fields['requirements'] = (*fields.get('requirements', ()), *matrix.get('tools', ()))
        rows[name] = Row(name=name, **fields)
    return rows


def run_rows(names: Sequence[str], tests: Sequence[str]) -> int:
    """Run rows one after another, and print a line for each.

    Args:
        names: Rows to run, finished or not; empty for all that are not finished.
        tests: Test files or folders; empty for the whole suite. Parts are not recorded.

    Returns:
        0 if no test failed in any of the rows, finished ones included, otherwise 1.

    Raises:
        UserError: If there is no row of a name.
    """
    rows = read_matrix()
    for name in names:
        if name not in rows:
            raise UserError(f'no such row: {name} ({MATRIX} has {", ".join(rows)})')
    chosen = [rows[name] for name in names] or [row for row in rows.values() if not row.when_named]
    failed = False
    for row in chosen:
        result = read_json(FOLDER / 'results.json').get(row.name)
        if result and result['row'] == row.contents() and not names and not tests:
            note = f' (run on {result["date"]}; ROW={row.name} runs it again)'
        else:
            try:
                result = run_row(row, tests)
            except UserError as error:
                print(f'{row.name}: not run: {error}', flush=True)
                failed = True
                continue
            note = ''
            if not tests:
                _record(row, result, rows)
        print(_line(row.name, result) + note, flush=True)
        failed |= result['failed'] > 0
    return int(failed)


def run_row(row: Row, tests: Sequence[str] = ()) -> dict[str, Any]:
    """Create a row's environment and run tests in it.

    Returns:
        The row's contents, the versions of Python and the packages, the numbers of tests that
        passed, failed and were skipped, the seconds that pytest took, and the date.

    Raises:
        UserError: If the environment can't be created, or pytest ends before its tests do.
    """
    folder = FOLDER / row.name
    folder.mkdir(parents=True, exist_ok=True)
    python = install(row, folder)
    report = folder / 'report.xml'
    for file in (report, folder / 'tests.log'):
        file.unlink(missing_ok=True)
    start = time.monotonic()
    _run([python, '-m', 'pytest', '-n', '2', '--dist', 'worksteal', f'--junitxml={report}', *tests],
         folder / 'tests.log', OMP_WAIT_POLICY='passive', PATH=_path(python.parent),
         accept=(0, 1))
    return {'row': row.contents(), **versions(python, PACKAGES), **count(report),
            'seconds': round(time.monotonic() - start), 'date': str(datetime.date.today())}


def install(row: Row, folder: Path) -> Path:
    """Create the environment of a row anew and return its Python.

    Raises:
        UserError: If uv can't create or fill it.
    """
    uv = Path(sys.executable).with_name('uv')
    python = folder / 'environment' / 'bin' / 'python'
    log = folder / 'install.log'
    log.unlink(missing_ok=True)
    _run([uv, 'venv', '--seed', '--clear', '--python', row.python, python.parents[1]], log)
    extras = f'[{",".join(row.extras)}]' if row.extras else ''
    files = [part for file in row.files for part in ('--requirements', file)]
    install_here = [uv, 'pip', 'install', '--python', python, '--overrides', OVERRIDES]
    _run([*install_here, *files, *row.requirements, '--editable', f'.{extras}'], log)
    if row.compile:
        _run([*install_here, '--no-deps', '--no-build-isolation', *row.compile], log,
             MMCV_WITH_OPS='1', PATH=_path(python.parent))
    return python


def versions(python: str | Path, modules: Iterable[str]) -> dict[str, Any]:
    """Return the version of a Python, and those of the distributions that provide modules in it."""
    code = _VERSIONS.replace('NAMES', repr(list(modules)))
    return json.loads(subprocess.run([python, '-I', '-c', code], check=True, capture_output=True,
                                     text=True).stdout)


def count(report: Path) -> dict[str, int]:
    """Return the numbers of tests that passed, failed and were skipped, from a JUnit report."""
    suites = list(ElementTree.parse(report).getroot().iter('testsuite'))
    total, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites)
        for name in ('tests', 'failures', 'errors', 'skipped'))
    return {'passed': total - failures - errors - skipped, 'failed': failures + errors,
            'skipped': skipped}


def table(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a line of the page's table for each result."""
    lines = {}
    for name, result in results.items():
        cells = [name, result['python']]
        for package, usual in PACKAGES.items():
            cells.append(' and '.join(
                version if provider == usual else f'{provider} {version}'
                for provider, version in result['packages'][package].items()) or 'none')
        cells += [str(result[key]) for key in ('passed', 'failed', 'skipped', 'date')]
        lines[name] = f'| {" | ".join(cells)} |'
    return lines


def write_page(page: Path, lines: Mapping[str, str], order: Sequence[str]) -> None:
    """Replace lines of the table at the end of a page.

    Lines of other rows stay, as they may be from another checkout; those of rows that the matrix
    no longer has go.

    Args:
        page: A Markdown file that ends with the table, or with the text before it.
        lines: New lines by the name of their row.
        order: The names of all rows.
    """
    text = page.read_text()
    before, head, after = text.partition(f'| {COLUMNS[0]} |')
    present = {line.split('|')[1].strip(): line for line in after.splitlines()[2:]}
    present = {**present, **lines}
    header = [f'| {" | ".join(COLUMNS)} |', f'|{"---|" * len(COLUMNS)}']
    content = [*header, *(present[name] for name in order if name in present)]
    with write_atomically(page) as file:
        file.write(before.rstrip() + '\n\n' + '\n'.join(content) + '\n')


def _record(row: Row, result: Mapping[str, Any], rows: Mapping[str, Row]) -> None:
    results = {**read_json(FOLDER / 'results.json'), row.name: result}
    write_json(FOLDER / 'results.json', results, indent=2)
    write_page(PAGE, table({row.name: result}), list(rows))


def _line(name: str, result: Mapping[str, Any]) -> str:
    return (f'{name}: {result["passed"]} passed, {result["failed"]} failed, '
            f'{result["skipped"]} skipped, {result["seconds"]} s')


def _path(*first: Path) -> str:
    """Return a PATH that begins with some folders and ends with all of pyenv's Pythons."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
    return os.pathsep.join(map(str, (*first, os.environ['PATH'],
                                     *sorted(pyenv.glob('versions/*/bin')))))


def _run(command: Sequence[str | Path], log: Path, *, accept: Sequence[int] = (0,),
         **environment: str) -> None:
    """Run a command in the root of the project and add what it prints to a log.

    Raises:
        UserError: If its exit status isn't one of ``accept``.
    """
    # Nothing of another environment: neither its modules nor options for its tests.
    inherited = {name: value for name, value in os.environ.items()
                 if name not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'PYTEST_ADDOPTS')}
    with log.open('a') as file:
        status = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env={**inherited, 'PATH': _path(), **environment}).returncode
    if status not in accept:
        raise UserError(f'`{Path(command[0]).name} {command[1]} {command[2]}` ended with status '
                        f'{status}: see {log}')


def main() -> int:
    """Parse the arguments and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('rows', nargs='*', metavar='ROW', help='rows to run, even if finished')
    parser.add_argument('--tests', nargs='+', default=[], metavar='PATH',
                        help='run these tests alone, without recording the result')
    arguments = parser.parse_args()
    try:
        return run_rows(arguments.rows, arguments.tests)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
