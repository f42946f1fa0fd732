"""``_base_ = 'evit_mm::NAME.py'``: the configs of this package as bases of others.

mmengine resolves ``PACKAGE::`` for a fixed list of OpenMMLab's own packages and has no way to add
one, so the one function that resolves it is wrapped. It finds the same files as mmengine, but
looks for them first in the package's folder. mmengine first parses all metafiles of the package,
about a hundred YAML files for every base, and asks whether a distribution called mmsegmentation is
installed, where forks publish ``mmseg`` under another name.
"""

import functools
import importlib.util
from pathlib import Path

__all__ = ['CONFIGS', 'install']

CONFIGS = Path(__file__).resolve().parents[1] / '.mim' / 'configs'

def install() -> None:
    """Make ``evit_mm::`` known to `mmengine.config.Config`; idempotent."""
    from mmengine.config import Config

    resolve = Config._get_cfg_path
    if getattr(resolve, '_knows_evit_mm', False):
        return

    @functools.wraps(resolve)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        module, is_external, name = cfg_path.partition('::')
        if not is_external:
            return resolve(cfg_path, filename)
        path = (CONFIGS if module == 'evit_mm' else _configs_of(module)) / name
        if path.is_file():
            # No scope: this package adds to registries, it has none of its own.
            return str(path), None if module == 'evit_mm' else module
        if module == 'evit_mm':
            raise FileNotFoundError(f'no such file: {path} ({cfg_path} in {filename})')
        try:
            return resolve(cfg_path, filename)
        except ModuleNotFoundError:
            if importlib.util.find_spec(module) is None:
                raise
            raise FileNotFoundError(f'no such file: {path} ({cfg_path} in {filename})') from None

    get_cfg_path._knows_evit_mm = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_cfg_path)


def _configs_of(module: str) -> Path:
    """Return where an installed package of OpenMMLab has its configs."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    return Path(spec.origin if spec and spec.origin else module).parent / '.mim' / 'configs'
