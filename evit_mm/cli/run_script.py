"""``evit-mm run``: the scripts of MMDetection and MMSegmentation, on mmcv-lite too."""

import argparse
import runpy
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError

__all__ = ['DESCRIPTION', 'Script', 'add_arguments', 'find_script', 'installed_scripts', 'run']

DESCRIPTION = (
    'Run a script of MMDetection or MMSegmentation, such as browse_dataset.py or test.py. evit_mm '
    'is imported first, so that the script works with mmcv-lite, and its config may use '
    'EfficientViT and `_base_ = \'evit_mm::...\'`.')

_PROJECTS = {'mmdet': 'MMDetection', 'mmseg': 'MMSegmentation'}
_FOLDERS = ('tools', 'demo')


class Script(NamedTuple):
    """A script of an installed package: ``mmdet``, ``analysis_tools/get_flops.py``, its file."""

    package: str
    name: str
    file: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``evit-mm run``."""
    parser.add_argument('--list', action='store_true', help='print the scripts and exit')
    parser.add_argument('script', nargs='?', metavar='SCRIPT',
                        help='name of an installed script (get_flops.py, misc/print_config.py); '
                        'mmdet:test.py or mmseg:test.py where both have it; or a path')
    parser.add_argument('args', nargs=argparse.REMAINDER, metavar='ARGS',
                        help='arguments of the script, its --help included')


def run(args: argparse.Namespace) -> None:
    """Run the script, or print the names of all.

    Raises:
        UserError: If no script was named, or `find_script` finds none.
    """
    if args.list:
        for script in installed_scripts():
            print(f'{script.package}:{script.name}')
        return
    if not args.script:
        raise UserError('name a script, such as browse_dataset.py; --list prints them all')
    _execute(find_script(args.script, args.args), args.args)


def installed_scripts() -> list[Script]:
    """List the scripts that the installed packages contain.

    OpenMMLab's wheels keep them in ``.mim``; with an editable install they are next to the package.
    """
    return list(_scripts())


def _scripts() -> Iterator[Script]:
    for package in _PROJECTS:
        spec = find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            root = Path(location, '.mim')
            if not root.is_dir():
                root = Path(location).parent
            for folder in _FOLDERS:
                for file in sorted(Path(root, folder).rglob('*.py')):
                    yield Script(package, file.relative_to(root / folder).as_posix(), file)


def find_script(name: str, args: Sequence[str] = ()) -> Path:
    """Find a script by its name or path.

    Args:
        name: A path; or the end of a name in `installed_scripts`, ``.py`` optional, with
            ``mmdet:`` or ``mmseg:`` in front to choose the package.
        args: Arguments of the script. If both packages have the script, the ``default_scope`` of
            the first config among them decides.

    Raises:
        UserError: If there is no such script, or both packages have one and no config decides.
    """
    if Path(name).is_file():
        return Path(name).resolve()
    package, _, short_name = name.rpartition(':')
    if package and package not in _PROJECTS:
        raise UserError(f'{name}: only scripts of {" and ".join(_PROJECTS)} are known by name')
    parts = Path(short_name).with_suffix('.py').parts
    matches = [script for script in installed_scripts()
               if script.package == (package or script.package)
               and Path(script.name).parts[-len(parts):] == parts]
    if not matches:
        raise UserError(
            f'no such script: {name}; `evit-mm run --list` prints those of the installed packages. '
            'Scripts in demo/ are not among them: name their path in a checkout')
    packages = {script.package for script in matches}
    if len(packages) > 1:
        scope = _default_scope(args)
        if scope not in packages:
            raise UserError(f'{name} exists in {" and ".join(_PROJECTS.values())}: write '
                            + ' or '.join(f'{package}:{name}' for package in _PROJECTS))
        matches = [script for script in matches if script.package == scope]
    # analysis_tools/browse_dataset.py rather than analysis_tools/mot/browse_dataset.py.
    return min(matches, key=lambda script: (script.name.count('/'), script.name)).file


def _default_scope(args: Sequence[str]) -> str | None:
    config = next((arg for arg in args if arg.endswith('.py') and Path(arg).is_file()), None)
    if config is None:
        return None
    from ..engine.config import load_config

    return load_config(config).get('default_scope')


def _execute(script: Path, args: Sequence[str]) -> None:
    """Run a file as `python FILE ARGS...` does, with the models of evit_mm registered.

    `torch.load`, which some scripts call, accepts mmengine's training checkpoints, still without
    running code from them.
    """
    import torch

    from .. import models  # noqa: F401
    from ..checkpoint.safe_load import allowed_globals

    if any(script == other.file for other in installed_scripts() if other.package == 'mmseg'):
        from ..segmentation.visualization import draw_on_contiguous_images

        draw_on_contiguous_images()
    sys.argv = [str(script), *args]
    sys.path[0] = str(script.parent)  # scripts import their neighbours
    with torch.serialization.safe_globals(allowed_globals()):
        runpy.run_path(str(script), run_name='__main__')
