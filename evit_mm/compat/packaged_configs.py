"""``_base_ = 'evit_mm::NAME.py'``: the configs of this package as bases of others.

mmengine resolves ``PACKAGE::`` for a fixed list of OpenMMLab's own packages and has no way to add
one, so the one function that resolves it is wrapped. All other names pass through unchanged.
"""

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
            return resolve(cfg_path, filename)
        path = CONFIGS / cfg_path.removeprefix(_PREFIX)
        if not path.is_file():
            raise FileNotFoundError(f'no such file: {path} ({cfg_path} in {filename})')
        return str(path), None  # no scope: this package adds to registries, it has none of its own

    get_cfg_path._knows_evit_mm = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(get_cfg_path)
