"""Architectures as config files, for `tools/train.py` and for other configs to inherit."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine.config import load_config
from ..errors import ConfigError
from ..files import write_atomically
from ..models import EfficientViT

__all__ = ['changed_in_channels', 'write_arch']


def write_arch(path: Path, arch: Mapping[str, Any], description: str, *,
               config: str | os.PathLike[str] | None = None,
               parts: Mapping[str, Any] | None = None) -> None:
    """Write an architecture as ``arch = dict(...)``, or as a whole config.

    Args:
        path: The .py file; its folder must exist.
        arch: The ``arch`` argument of `EfficientViT`.
        description: The file's docstring; with ``config``, the command that trains it follows.
        config: A config whose model has an EfficientViT as its backbone. The file inherits it and
            replaces the architecture.
        parts: Changes of other parts of that config's model, by their names; see
            `changed_in_channels`.

    Raises:
        UserError: If the file can't be written.
    """
    lines = [f'"""{description}']
    if config:
        lines += ['', f'    tools/train.py {path} --from-scratch']
    lines += ['"""', '']
    if config:
        lines += [f'_base_ = {os.path.relpath(config, path.parent)!r}', '']
    lines += ['arch = dict(', *(f'    {field}={value!r},' for field, value in arch.items()), ')']
    if config:
        lines += ['model = dict(',
                  '    backbone=dict(arch=dict(_delete_=True, **arch), init_cfg=None),',
                  *(f'    {part}={changes!r},' for part, changes in (parts or {}).items()), ')']
    with write_atomically(path) as file:
        file.write('\n'.join(lines) + '\n')


def changed_in_channels(config_path: str | os.PathLike[str], arch: Mapping[str, Any]
                        ) -> dict[str, Any]:
    """Return the ``in_channels`` that a config's neck or heads need for another architecture.

    Args:
        config_path: A config whose model has an EfficientViT as its backbone.
        arch: The ``arch`` argument of `EfficientViT`.

    Returns:
        dict: Changes by the name of the model's part, for ``parts`` of `write_arch`.

    Raises:
        ConfigError: If the backbone is not an EfficientViT.
    """
    config = load_config(config_path)
    backbone = config.get('model', {}).get('backbone') or {}
    if backbone.get('type') != 'EfficientViT':
        raise ConfigError(f'{config_path}: the backbone of its model is not an EfficientViT, so '
                          'the architecture can\'t be replaced')
    out_channels = EfficientViT(**{
        **{key: value for key, value in backbone.items() if key != 'type'},
        'arch': arch, 'init_cfg': None}).out_channels
    # The heads of a detector take the neck's channels; those of a segmentor without a neck take
    # the backbone's.
    names = ['neck'] if config.model.get('neck') else ['decode_head', 'auxiliary_head']
    parts: dict[str, Any] = {}
    for name in names:
        part = config.model.get(name)
        if isinstance(part, list):
            # Configs inherit a list as a whole. Of several necks, only the first one takes the
            # backbone's channels.
            members = [member.to_dict() for member in part]
            for member in members[:1] if name == 'neck' else members:
                member.update(_in_channels(member, out_channels))
            parts[name] = members
        elif part and (changes := _in_channels(part, out_channels)):
            parts[name] = changes
    return parts


def _in_channels(part: Mapping[str, Any], out_channels: Sequence[int]) -> dict[str, Any]:
    """Return the ``in_channels`` of a neck or head for a backbone's ``out_channels``."""
    in_channels, index = part.get('in_channels'), part.get('in_index', -1)
    if isinstance(in_channels, int):
        return {'in_channels': out_channels[index]}
    if not in_channels:
        return {}
    return {'in_channels': [out_channels[i] for i in index] if isinstance(index, list | tuple)
            else list(out_channels)}
