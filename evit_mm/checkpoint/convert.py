"""Look into files of weights, and write them in another layout.

Above `evit_mm.models`, whose variants it names; it builds none of them.
"""

import json
import reprlib
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..arch import NUM_STAGES
from ..errors import CheckpointError, UserError
from ..models.attention import relative_position_index
from . import (
    MICROSOFT,
    NATIVE,
    TIMM,
    Layout,
    Structure,
    backbone_names,
    classifier_names,
    find_prefixes,
    local_copy,
    markdown_table,
    recognise,
    strip_containers,
    variant_of,
)
from .containers import Weights, find_weights
from .safe_load import is_safetensors, load_checkpoint_file

__all__ = ['TARGETS', 'Converted', 'convert', 'convert_state', 'describe_file', 'write_weights']

TARGETS: dict[str, Layout] = {'evit-mm': NATIVE, 'timm': TIMM, 'microsoft': MICROSOFT}
"""Layouts to convert to, by their name on the command line."""

_SUFFIXES = ('.safetensors', '.pth', '.pt')
_BACKBONE = 'backbone.'
_INDEX = 'attention_bias_idxs'
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_OPTIONAL = ('num_batches_tracked', 'running_mean', 'running_var')  # a GN has no statistics


@dataclass
class Converted:
    """A state dict in another layout.

    Attributes:
        state: The tensors.
        source: What they were.
        dropped: Keys of the source that have no place in the new layout.
        others: Whether parts of a detector or segmentor stand beside the backbone.
    """

    state: dict[str, Tensor]
    source: Structure
    dropped: list[str] = field(default_factory=list)
    others: bool = False


def convert(options: Namespace) -> None:
    """Do what the options of `evit_mm.cli.convert_weights_parser` say.

    Raises:
        UserError: If a file can't be read, is of no known layout, or can't be written.
    """
    if options.list:
        print(markdown_table())
        return
    if not options.src:
        raise UserError('name the file to read: a path, an address, or a name of --list')
    if not options.inspect and not options.dst:
        raise UserError('name the file to write, or pass --inspect to look into the other')
    target = None if options.inspect else _target(options.dst, options.overwrite)
    path = local_copy(options.src)
    if options.trust:
        print(f'warning: --trust runs whatever code {path} holds; it is for files of people whose '
              'programs you would run', file=sys.stderr)
    checkpoint = load_checkpoint_file(path, 'cpu', trust=options.trust)
    if target is None:
        print(describe_file(path, checkpoint))
        return
    layout = TARGETS[options.to]
    converted = convert_state(strip_containers(checkpoint, str(path)), layout, str(path))
    write_weights(target, converted, layout, _meta(checkpoint) if converted.others else None)
    arch = variant_of(converted.source) or 'a variant of its own'
    print(f'{target}: {arch}, {len(converted.state)} tensors in the {layout.name} layout '
          f'(from the {converted.source.layout.name} layout)')
    if converted.dropped:
        print(f'without {_listed(_modules(converted.dropped))}, which that layout has no place for')


def convert_state(state: Mapping[str, Tensor], layout: Layout, source: str = 'the checkpoint'
                  ) -> Converted:
    """Rename the tensors of a backbone, classifier, detector or segmentor.

    No tensor changes. The tables of indices that Microsoft's files hold are left out and made
    anew; the other parts of a detector stay as they are, except in timm's layout, which has none.

    Args:
        state: Keys of any known layout.
        layout: The layout to give.
        source: Where the state dict came from, for the error.

    Raises:
        CheckpointError: If it holds no backbone, more than one, a fused one or a part of one, or
            a key that no rule explains.
    """
    prefixes = find_prefixes(state)
    if len(prefixes) > 1:
        raise CheckpointError(f'{source} holds {len(prefixes)} backbones, under '
                              f'{_listed(map(repr, prefixes))}: save the wanted one alone')
    prefix = prefixes[0] if prefixes else ''
    own = {key.removeprefix(prefix): value for key, value in state.items()
           if key.startswith(prefix)}
    others = {key: value for key, value in state.items() if not key.startswith(prefix)}
    found = recognise(own)
    if found is None:
        raise CheckpointError(f'{source} holds no EfficientViT that is known here; the first of '
                              f'its {len(state)} tensors are {_listed(list(state)[:3])}')
    if found.fused:
        raise CheckpointError(f'{source} is a fused export in the {found.layout.name} layout: BN '
                              'is folded into its convolutions, which can\'t be undone; convert '
                              'the checkpoint that it was made from')
    keep = prefix == _BACKBONE and layout is not TIMM
    converted = Converted({}, found, [] if keep else list(others), bool(others) and keep)
    table = found.layout.table(
        backbone_names(found.depths, found.num_heads) + classifier_names())
    unexplained = [key for key in own if key not in table and not key.endswith(f'.{_INDEX}')]
    missing = [key for key, name in table.items() if key not in own
               and not name.endswith(_OPTIONAL) and not name.startswith('head.')]
    if unexplained or missing:
        parts = [f'{len(keys)} {what} ({_listed(keys[:5])}{", ..." if len(keys) > 5 else ""})'
                 for what, keys in (('without a rule', unexplained), ('missing', missing)) if keys]
        raise CheckpointError(f'{source} is not a whole {found.layout.name} checkpoint: of its '
                              f'tensors, {" and ".join(parts)}')
    written = _BACKBONE if keep else ''
    for key, value in own.items():
        if key not in table:
            continue
        name = layout.published_key(table[key])
        converted.state[written + name] = value
        if layout is MICROSOFT and name.endswith('.attention_biases'):
            side = round(value.shape[1] ** 0.5)
            converted.state[written + name.removesuffix('attention_biases') + _INDEX] = \
                relative_position_index(side)
    if keep:
        converted.state.update(others)
    return converted


def write_weights(path: Path, converted: Converted, layout: Layout,
                  meta: Mapping[str, Any] | None = None) -> None:
    """Write a file in one step from absent, or from what it was, to complete.

    A safetensors file says in its header what it is; a ``.pth`` has the container that the
    layout's own programs look for.

    Args:
        path: Its suffix decides on the format: ``.safetensors``, ``.pth`` or ``.pt``.
        converted: What to write.
        layout: Whose keys they are.
        meta: ``dataset_meta`` of a detector: the names of its classes.

    Raises:
        UserError: If it can't be written.
    """
    unfinished = path.with_name(f'{path.name}.tmp')
    try:
        # safetensors takes no views of one another; torch.save would write all that a view is of.
        tensors = {key: value.detach().clone(memory_format=torch.contiguous_format)
                   for key, value in converted.state.items()}
        if path.suffix == '.safetensors':
            header = {'format': 'pt', 'layout': layout.name,
                      'arch': variant_of(converted.source) or 'custom',
                      'window_sizes': ', '.join(map(str, converted.source.window_sizes))}
            if meta:
                header['dataset_meta'] = json.dumps(meta)
            save_file(tensors, unfinished, metadata=header)
        elif layout is TIMM:
            torch.save(tensors, unfinished)
        elif layout is MICROSOFT and not converted.others:
            torch.save({'model': tensors}, unfinished)
        else:
            torch.save({'state_dict': tensors, 'meta': {'dataset_meta': meta} if meta else {}},
                       unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch's: a full disk, a tensor without numbers
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        raise UserError(f'{path} can\'t be written: {reason}') from error
    finally:
        unfinished.unlink(missing_ok=True)


def describe_file(path: Path, checkpoint: Any) -> str:
    """What a file holds, for people; no model is built.

    Args:
        path: The file.
        checkpoint: What `evit_mm.checkpoint.safe_load.load_checkpoint_file` gave for it.
    """
    kind = 'safetensors' if is_safetensors(path) else 'torch.save'
    lines = [('file', f'{path} ({kind}, {_bytes(path.stat().st_size)})')]
    weights = find_weights(checkpoint)
    if weights is None:
        return _aligned([*lines, ('weights', 'none'), *_extras(checkpoint, None)])
    if (weights.place and kind != 'safetensors') or weights.wrappers:
        place = '.'.join(weights.place) or 'the file itself'
        wrappers = f', keys begin with {"".join(weights.wrappers)}' if weights.wrappers else ''
        lines.append(('weights in', place + wrappers))
    prefixes = find_prefixes(weights.state)
    for prefix in prefixes or ['']:
        own = {key.removeprefix(prefix): value for key, value in weights.state.items()
               if key.startswith(prefix)}
        lines += _backbone_lines(recognise(own), prefix)
    lines.append(('tensors', _tensors(weights.state.values())))
    if prefixes and '' not in prefixes:
        beside = [key for key in weights.state if not key.startswith(tuple(prefixes))]
        if beside:
            lines.append(('beside it', _listed(_modules(beside))))
    elif any(key.startswith('head.') for key in weights.state):
        lines.append(('classifier', 'yes (head.*)'))
    return _aligned([*lines, *_extras(checkpoint, weights)])


def _backbone_lines(found: Structure | None, prefix: str) -> list[tuple[str, str]]:
    under = f', under {prefix}*' if prefix else ''
    if found is None:
        return [('layout', f'none that is known here{under}')]
    fused = ', fused: BN is folded into the convolutions' if found.fused else ''
    cut = f', without its last {NUM_STAGES - len(found.depths)} stages' \
        if len(found.depths) < NUM_STAGES else ''
    widths = ', '.join(map(str, found.embed_dims))
    windows = ', '.join(str(size) if size else '?' for size in found.window_sizes)
    return [('layout', f'{found.layout.name}{fused}{under}'),
            ('arch', f'{variant_of(found) or "a variant of its own"} (widths {widths}){cut}'),
            ('windows', windows)]


def _tensors(tensors: Iterable[Tensor]) -> str:
    tensors = list(tensors)
    dtypes = Counter(str(tensor.dtype).removeprefix('torch.') for tensor in tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    numbers = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    return (f'{len(tensors)} ({_listed(f"{count} {name}" for name, count in dtypes.items())}), '
            f'{numbers / 1e6:.2f} M numbers, {_bytes(size)}')


def _extras(checkpoint: Any, weights: Weights | None) -> list[tuple[str, str]]:
    """What else a file holds beside its weights."""
    if not isinstance(checkpoint, Mapping):
        return [('holds', type(checkpoint).__name__)]
    lines = []
    for key, value in checkpoint.items():
        if (weights and weights.place[:1] == (key,)) or isinstance(value, Tensor | np.ndarray):
            continue
        if isinstance(value, Mapping):
            names = sorted(map(str, value))
            text = f'{len(value)} entries' + ': ' * bool(names) + _listed(names[:8]) + \
                ', ...' * (len(names) > 8)
        else:
            text = f'{type(value).__name__}, {" ".join(_BRIEF.repr(value).split())[:80]}'
        lines.append((f'extra: {key}', text))
    return lines


def _meta(checkpoint: Any) -> dict[str, Any]:
    """The classes and colours that a detector was trained with, where they are plain data."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    found = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    try:
        return json.loads(json.dumps(found)) if isinstance(found, Mapping) else {}
    except (TypeError, ValueError, RecursionError):
        return {}


def _target(name: str, overwrite: bool) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f'{path} is a folder: name the file to write')
    if path.suffix not in _SUFFIXES:
        path = path.with_name(f'{path.name}.safetensors')
    if path.exists() and not overwrite:
        raise UserError(f'{path} exists: name another file, or pass --overwrite')
    if not path.absolute().parent.is_dir():
        raise UserError(f'{path} can\'t be written: there is no folder {path.parent}')
    return path


def _modules(keys: Iterable[str]) -> list[str]:
    counts = Counter(key.split('.')[0] for key in keys)
    return [f'{name}.* ({count})' for name, count in counts.items()]


def _listed(parts: Iterable[str]) -> str:
    return ', '.join(parts)


def _bytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size} bytes'


def _aligned(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return '\n'.join(_printable(f'{name:<{width}}  {text}'.rstrip()) for name, text in lines)


def _printable(text: str) -> str:
    """Without what would steer the terminal: the names in a file are whoever wrote it's."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text)
