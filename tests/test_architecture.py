"""The rooms and import rules of docs/architecture.md."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'evit_mm'

# The parts of this package that each part imports when it is imported itself, and those that its
# functions import when they are called.
INTERNAL: dict[str, tuple[set[str], set[str]]] = {
    'errors': (set(), set()),
    'arch': ({'errors'}, set()),
    'files': ({'errors'}, set()),
    'ops': (set(), set()),
    'models': ({'arch', 'checkpoint', 'errors', 'ops'}, {'deployment'}),
    'deployment': ({'errors', 'models', 'ops'}, {'arch', 'engine', 'predict', 'version'}),
    'checkpoint': ({'arch', 'errors', 'files'}, {'models'}),
    'compat': ({'errors'}, {'checkpoint', 'models'}),
}
# Packages that no other part imports before it is called.
HOMES = {'mmdet': 'detection', 'mmseg': 'segmentation'}


def files(part: str) -> list[Path]:
    """Return the modules of a folder or module of the package."""
    module = PACKAGE / f'{part}.py'
    return [module] if module.is_file() else sorted((PACKAGE / part).rglob('*.py'))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the absolute name of each import of a module, and whether it is inside a function."""
    package = ['evit_mm', *path.relative_to(PACKAGE).parts[:-1]]

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            name = '.'.join([*base, *([node.module] if node.module else [])])
            yield from ((f'{name}.{alias.name}', lazy) for alias in node.names)
        lazy = lazy or isinstance(node, ast.FunctionDef)
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    yield from visit(ast.parse(path.read_text()), False)


@pytest.mark.parametrize('part', INTERNAL)
def test_a_part_imports_its_neighbours_only(part):
    at_import, when_called = INTERNAL[part]
    for path in files(part):
        for name, lazy in imports(path):
            other = name.split('.')[1] if name.startswith('evit_mm.') else part
            allowed = at_import | when_called if lazy else at_import
            assert other in allowed | {part}, f'{path.relative_to(PACKAGE)} imports {name}'


def test_models_import_torch_and_parts_of_openmmlab():
    for path in files('models'):
        for name, _ in imports(path):
            package = name.split('.')[0]
            allowed = package in ('torch', 'mmengine', 'evit_mm') or \
                package in sys.stdlib_module_names or name.startswith('mmcv.cnn')
            assert allowed, f'{path.relative_to(PACKAGE)} imports {name}'
            if name.startswith('evit_mm.ops'):
                assert name.startswith('evit_mm.ops.folded_conv') and path.name == 'layers.py'


def test_weight_files_are_opened_in_one_room():
    calls = re.compile(r'\b(torch\.load|safe_open|load_file|urlopen|urllib|'
                       r'load_state_dict_from_url)\b')
    for path in PACKAGE.rglob('*.py'):
        room = path.relative_to(PACKAGE).parts[0]
        code = re.sub(r'(?s)""".*?"""|#[^\n]*', '', path.read_text())
        # The command runs scripts of MMDetection, whose own torch.load it makes safe.
        if room != 'checkpoint' and path != PACKAGE / 'cli' / 'run_script.py':
            assert not calls.search(code), path.relative_to(PACKAGE)


def test_other_packages_are_changed_from_one_place():
    """`compat` is called by the package itself, and installs the loaders; nobody else does.

    What the stand-in for mmcv's operators lacks can be asked from elsewhere.
    """
    questions = {'evit_mm.compat.mmcv_ops.MissingOpError',
                 'evit_mm.compat.mmcv_ops.missing_operators'}
    for path in PACKAGE.rglob('*.py'):
        room = path.relative_to(PACKAGE).parts[0]
        for name, _ in imports(path):
            if name.startswith('evit_mm.compat') and name not in questions:
                assert room in ('compat', '__init__.py'), path.relative_to(PACKAGE)
            if 'mmengine_loader' in name:
                assert room in ('compat', 'checkpoint'), path.relative_to(PACKAGE)


def test_ops_import_torch_alone():
    for path in files('ops'):
        for name, _ in imports(path):
            package = name.split('.')[0]
            assert package in ('torch', 'evit_mm') or package in sys.stdlib_module_names, \
                f'{path.relative_to(PACKAGE)} imports {name}'


def test_arch_and_errors_import_no_torch():
    for path in [*files('arch'), *files('errors')]:
        assert not [name for name, lazy in imports(path) if name.startswith('torch') and not lazy]


def test_the_command_line_imports_nothing_heavy():
    for path in files('cli'):
        for name, lazy in imports(path):
            light = name.split('.')[0] in sys.stdlib_module_names or name.startswith(
                ('evit_mm.cli', 'evit_mm.errors', 'evit_mm.version', 'evit_runtime.cli'))
            assert lazy or light, f'{path.relative_to(PACKAGE)} imports {name}'


def test_namespaces_stay_in_the_command_line():
    for path in PACKAGE.rglob('*.py'):
        room = path.relative_to(PACKAGE).parts[0]
        # A checkpoint may hold a Namespace, which is among the types that are safe to load.
        if room == 'cli' or path == PACKAGE / 'checkpoint' / 'safe_load.py':
            continue
        assert not re.search(r'\bNamespace\b', path.read_text()), path.relative_to(PACKAGE)


@pytest.mark.parametrize('package', HOMES)
def test_mmdet_and_mmseg_are_imported_at_home_or_when_called(package):
    for path in PACKAGE.rglob('*.py'):
        if path.relative_to(PACKAGE).parts[0] == HOMES[package]:
            continue
        for name, lazy in imports(path):
            assert lazy or name.split('.')[0] != package, \
                f'{path.relative_to(PACKAGE)} imports {name}'


def test_the_page_lists_every_room():
    page = (PACKAGE.parent / 'docs' / 'architecture.md').read_text()
    listed = set(re.findall(r'^ {2}([\w.]+?)/? {2,}', page, re.M))
    rooms = {path.name for path in PACKAGE.iterdir()
             if not path.name.startswith('__') and path.name not in ('py.typed', 'version.py')}
    assert listed - {'__init__.py'} == rooms
    assert not [path for path in PACKAGE.rglob('*')
                if path.stem in ('utils', 'misc', 'helpers')]
