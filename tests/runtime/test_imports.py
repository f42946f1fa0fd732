"""evit_runtime works where torch, OpenMMLab's packages and evit_mm can't be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / 'evit_runtime'
FORBIDDEN = ('evit_mm', 'mmcv', 'mmdet', 'mmengine', 'mmseg', 'torch', 'torchvision')
# What the modules import, and what their functions import when they are called.
ALLOWED = {'cv2', 'numpy', 'PIL', 'evit_runtime'}
WHEN_CALLED = {'gradio', 'matplotlib', 'onnxruntime', 'openvino', 'starlette', 'supervision',
               'tqdm', 'trackers', 'uvicorn'}
REFUSE = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {FORBIDDEN!r}:
            raise ModuleNotFoundError('refused: ' + name)

sys.meta_path.insert(0, Refuse())
"""


def imported(path: Path) -> list[tuple[str, bool]]:
    """Return the packages that a module imports, and whether it does so inside a function."""
    found = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name.split('.')[0], lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(((node.module or '').split('.')[0], lazy))
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
            lazy = True
        lazy = lazy or isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(path.read_text()), False)
    return found


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: path.stem)
def test_a_module_imports_what_the_runtime_may(path):
    for package, lazy in imported(path):
        allowed = ALLOWED | WHEN_CALLED if lazy else ALLOWED
        assert package in allowed or package in sys.stdlib_module_names, f'imports {package}'


def run(code: str) -> str:
    done = subprocess.run([sys.executable, '-c', REFUSE + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_without_torch():
    names = [f'evit_runtime.{path.stem}' for path in sorted(PACKAGE.glob('*.py'))
             if not path.stem.startswith('__')]
    assert len(names) > 4
    printed = run(f'import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n'
                  f'print(sorted(set({FORBIDDEN!r}) & sys.modules.keys()))')
    assert printed == '[]\n'


def test_importing_the_package_is_cheap():
    assert run('import evit_runtime\nprint("numpy" in sys.modules, evit_runtime.__version__)') \
        == f'False {__import__("evit_runtime").__version__}\n'


def test_namespaces_stay_in_the_command_line():
    for path in PACKAGE.rglob('*.py'):
        assert path.name == 'cli.py' or 'Namespace' not in path.read_text(), path.name
