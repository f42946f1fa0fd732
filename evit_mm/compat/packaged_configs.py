"""``_base_ = 'evit_mm::NAME.py'``: the configs of this package as bases of others.

mmengine resolves ``PACKAGE::`` for a fixed list of OpenMMLab's own packages and has no way to add
one, so the one function that resolves it is wrapped. All other names pass through unchanged, except
that ``mmseg::`` works for a fork too: mmengine asks whether a distribution called mmsegmentation is
installed, and forks publish the module under another name.
"""

import importlib.util
from pathlib import Path

__all__ = ['CONFIGS', 'install']

CONFIGS = Path(__file__).resolve().parents[1] / '.mim' / 'configs'

_PREFIX = 'evit_mm::'


def install() -> None:
    """Make ``evit_mm::`` known to `mmengine.config.Config`; idempotent."""
    from mmengine.config import Config

    resolve = Config._get_cfg_path
    if getattr(resolve, '_knows_evit_mm', False):
        return

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not cfg_path.startswith(_PREFIX):
            try:
                return resolve(cfg_path, filename)
            except ModuleNotFoundError:
                module, _, name = cfg_path.partition('::')
                spec = importlib.util.find_spec(module)
                if spec is None or spec.origin is None:
                    raise
            configs, scope = Path(spec.origin).parent / '.mim' / 'configs', module
        else:
            # No scope: this package adds to registries, it has none of its own.
            configs, name, scope = CONFIGS, cfg_path.removeprefix(_PREFIX), None
        path = configs / name
        if not path.is_file():
            raise FileNotFoundError(f'no such file: {path} ({cfg_path} in {filename})')
        return str(path), scope

    get_cfg_path._knows_evit_mm = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_cfg_path)
