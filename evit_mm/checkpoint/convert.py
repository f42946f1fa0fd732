"""Inspect weight files, and write them in another key layout. No model is built."""

import json
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..arch import NUM_STAGES
from ..errors import CheckpointError, UserError
from ..files import write_atomically
from .containers import Weights, find_weights, strip_containers
from .key_maps import MICROSOFT, NATIVE, TIMM, Layout
from .safe_load import is_safetensors, load_checkpoint_file
from .structure import (
    Structure,
    backbone_names,
    classifier_names,
    find_prefixes,
    infer_structure,
    variant_of,
)
from .zoo import local_copy

__all__ = ['LAYOUT_NAMES', 'Converted', 'convert_checkpoint', 'convert_state',
           'inspect_checkpoint', 'write_weights']

LAYOUT_NAMES: dict[str, Layout] = {'evit-mm': NATIVE, 'timm': TIMM, 'microsoft': MICROSOFT}
"""Layouts to convert to, by the names that `convert_checkpoint` and the command line accept."""

_SUFFIXES = ('.safetensors', '.pth', '.pt')
_BACKBONE = 'backbone.'
_INDEX = 'attention_bias_idxs'
_OPTIONAL = ('num_batches_tracked', 'running_mean', 'running_var')  # GN has no statistics
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass
class Converted:
    """A state dict in a new layout.

    Attributes:
        state: The tensors.
        layout: The new layout.
        source: Structure of the backbone before the conversion.
        dropped: Keys of the source that the new layout has no place for.
        has_other_parts: Whether ``state`` contains parts of a detector or segmentor other than the
            backbone.
        path: The file that was written, if any.
    """

    state: dict[str, Tensor]
    layout: Layout
    source: Structure
    dropped: list[str] = field(default_factory=list)
    has_other_parts: bool = False
    path: Path | None = None

    def __str__(self) -> str:
        arch = variant_of(self.source) or 'a custom variant'
        text = (f'{arch}, {len(self.state)} tensors in the {self.layout.name} layout (from the '
                f'{self.source.layout.name} layout)')
        if self.path:
            text = f'{self.path}: {text}'
        if self.dropped:
            text += f'\nleft out, as that layout has no place for them: {_modules(self.dropped)}'
        return text


def convert_checkpoint(src: str | os.PathLike[str], dst: str | os.PathLike[str], *,
                       to: str = 'evit-mm', overwrite: bool = False,
                       trust: bool = False) -> Converted:
    """Write a checkpoint in another key layout; the values of the tensors do not change.

    Args:
        src: A file of any known layout, an address, or a published name.
        dst: The file to write: ``.safetensors``, ``.pth`` or ``.pt``; ``.safetensors`` is appended
            to a name without a suffix.
        to: The layout to write: ``'evit-mm'``, ``'timm'`` or ``'microsoft'``.
        overwrite: Replace ``dst`` if it exists.
        trust: Load ``src`` even if that runs code from it. Only for files of people whose programs
            you would run.

    Returns:
        Converted: The written tensors, and the path in ``path``.

    Raises:
        MissingCheckpointError: If ``src`` does not exist.
        CheckpointError: If ``src`` can't be read, is refused, or can't be converted.
        UserError: If ``dst`` can't be written, or there is no such layout.
    """
    if to not in LAYOUT_NAMES:
        raise UserError(f'there is no layout {to!r}: choose from {", ".join(LAYOUT_NAMES)}')
    target = _output_path(dst, overwrite)
    path = local_copy(src)
    checkpoint = load_checkpoint_file(path, 'cpu', trust=trust)
    converted = convert_state(strip_containers(checkpoint, str(path)), LAYOUT_NAMES[to], str(path))
    write_weights(target, converted, dataset_meta=_dataset_meta(checkpoint))
    converted.path = target
    return converted


def inspect_checkpoint(src: str | os.PathLike[str], *, trust: bool = False) -> str:
    """Describe the content of a checkpoint: layout, variant, window sizes, tensors and the rest.

    Args:
        src: A file, an address, or a published name.
        trust: Load ``src`` even if that runs code from it.

    Returns:
        str: One line per property.

    Raises:
        MissingCheckpointError: If ``src`` does not exist.
        CheckpointError: If it can't be read or is refused.
    """
    path = local_copy(src)
    checkpoint = load_checkpoint_file(path, 'cpu', trust=trust)
    kind = 'safetensors' if is_safetensors(path) else 'torch.save'
    lines = [('file', f'{path} ({kind}, {_bytes(path.stat().st_size)})')]
    weights = find_weights(checkpoint)
    if weights is None:
        return _aligned([*lines, ('weights', 'none'), *_extras(checkpoint, None)])
    if (weights.place and kind != 'safetensors') or weights.wrappers:
        place = '.'.join(weights.place) or 'the file itself'
        wrappers = f', keys start with {"".join(weights.wrappers)}' if weights.wrappers else ''
        lines.append(('weights in', place + wrappers))
    prefixes = find_prefixes(weights.state)
    for prefix in prefixes or ['']:
        backbone = {key.removeprefix(prefix): value for key, value in weights.state.items()
                    if key.startswith(prefix)}
        lines += _backbone_lines(infer_structure(backbone), prefix)
    lines.append(('tensors', _tensors(weights.state.values())))
    if prefixes and '' not in prefixes:
        others = [key for key in weights.state if not key.startswith(tuple(prefixes))]
        if others:
            lines.append(('other parts', _modules(others)))
    elif any(key.startswith('head.') for key in weights.state):
        lines.append(('classifier', 'yes (head.*)'))
    return _aligned([*lines, *_extras(checkpoint, weights)])


def convert_state(state: Mapping[str, Tensor], layout: Layout, source: str = 'the checkpoint'
                  ) -> Converted:
    """Rename the tensors of a backbone, classifier, detector or segmentor.

    The tensors themselves do not change. The index tables in Microsoft's files are dropped, and
    computed when that layout is written. The other parts of a detector keep their names, except in
    timm's layout, which has no place for them.

    Args:
        state: Keys of any known layout.
        layout: The new layout.
        source: File or address of the state dict, for the error.

    Raises:
        CheckpointError: If ``state`` contains no backbone, several, a fused or an incomplete one,
            or a key that no rule covers.
    """
    prefixes = find_prefixes(state)
    if len(prefixes) > 1:
        raise CheckpointError(f'{source} contains {len(prefixes)} backbones, under '
                              f'{", ".join(map(repr, prefixes))}: save one of them to a file of '
                              'its own')
    prefix = prefixes[0] if prefixes else ''
    backbone = {key.removeprefix(prefix): value for key, value in state.items()
                if key.startswith(prefix)}
    others = {key: value for key, value in state.items() if not key.startswith(prefix)}
    structure = infer_structure(backbone)
    if structure is None:
        raise CheckpointError(f'{source} contains no EfficientViT of a known layout; the first of '
                              f'its {len(state)} tensors are {", ".join(list(state)[:3])}')
    table = _complete_table(backbone, structure, source)
    keep_others = prefix == _BACKBONE and layout is not TIMM
    new_prefix = _BACKBONE if keep_others else ''
    renamed: dict[str, Tensor] = {}
    for key, value in backbone.items():
        if key not in table:
            continue
        name = new_prefix + layout.published_key(table[key])
        renamed[name] = value
        if layout is MICROSOFT and name.endswith('.attention_biases'):
            renamed[name.removesuffix('attention_biases') + _INDEX] = _bias_index(value)
    if keep_others:
        renamed.update(others)
    return Converted(renamed, layout, structure, dropped=[] if keep_others else list(others),
                     has_other_parts=keep_others and bool(others))


def write_weights(path: Path, converted: Converted, *,
                  dataset_meta: Mapping[str, Any] | None = None) -> None:
    """Write converted weights, completely or not at all.

    The header of a safetensors file records layout, variant and window sizes. In a ``.pth`` or
    ``.pt`` file the weights are in the container that the programs of the layout expect.

    Args:
        path: ``.safetensors``, ``.pth`` or ``.pt``; the suffix selects the format.
        converted: The weights.
        dataset_meta: Class names and palette of a detector or segmentor; written with its other
            parts only.

    Raises:
        UserError: If the file can't be written.
    """
    meta = dict(dataset_meta or {}) if converted.has_other_parts else {}
    # safetensors rejects tensors that share memory, and torch.save would write all the memory that
    # a view belongs to.
    tensors = {key: value.detach().clone(memory_format=torch.contiguous_format)
               for key, value in converted.state.items()}
    with write_atomically(path, 'wb') as file:
        try:
            if path.suffix == '.safetensors':
                # By name: the variant that returns bytes needs the memory of all weights again.
                save_file(tensors, file.name, metadata=_header(converted, meta))
            elif converted.layout is TIMM:
                torch.save(tensors, file)
            elif converted.layout is MICROSOFT and not converted.has_other_parts:
                torch.save({'model': tensors}, file)
            else:
                torch.save({'state_dict': tensors, 'meta': {'dataset_meta': meta} if meta else {}},
                           file)
        except (RuntimeError, SafetensorError) as error:
            # Both report a full disk like this; so does safetensors a tensor without data.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise OSError(getattr(cause, 'strerror', None) or ' '.join(str(cause).split())
                          ) from error


def _complete_table(backbone: Mapping[str, Tensor], structure: Structure, source: str
                    ) -> dict[str, str]:
    """Map the backbone's keys to our names, after checking that all keys are known and present.

    Raises:
        CheckpointError: If the backbone is fused or incomplete, or has a key that no rule covers.
    """
    if structure.fused:
        raise CheckpointError(f'{source} is a fused export in the {structure.layout.name} layout: '
                              'BN is folded into its convolutions, which can\'t be undone; '
                              'convert the checkpoint that it was made from')
    names = backbone_names(structure.depths, structure.num_heads) + classifier_names()
    table = structure.layout.table(names)
    unknown = [key for key in backbone if key not in table and not key.endswith(f'.{_INDEX}')]
    missing = [key for key, name in table.items() if key not in backbone
               and not name.endswith(_OPTIONAL) and not name.startswith('head.')]
    if unknown or missing:
        parts = [f'{len(keys)} {kind} ({", ".join(keys[:5])}{", ..." if len(keys) > 5 else ""})'
                 for kind, keys in (('unknown', unknown), ('missing', missing)) if keys]
        raise CheckpointError(f'{source} is not a complete {structure.layout.name} checkpoint; of '
                              f'its tensors, {" and ".join(parts)}')
    return table


def _bias_index(biases: Tensor) -> Tensor:
    from ..models.attention import relative_position_index  # the models import this package

    return relative_position_index(round(biases.shape[1] ** 0.5))


def _header(converted: Converted, meta: Mapping[str, Any]) -> dict[str, str]:
    header = {'format': 'pt', 'layout': converted.layout.name,
              'arch': variant_of(converted.source) or 'custom',
              'window_sizes': ', '.join(map(str, converted.source.window_sizes))}
    return header | ({'dataset_meta': json.dumps(meta)} if meta else {})


def _output_path(dst: str | os.PathLike[str], overwrite: bool) -> Path:
    try:
        path = Path(dst).expanduser()
        if path.is_dir():
            raise UserError(f'can\'t write {path}: it is a folder; add the name of a file')
        if not path.suffix:
            path = path.with_name(f'{path.name}.safetensors')
        exists, has_folder = path.exists(), path.absolute().parent.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, an empty name
        raise UserError(f'can\'t write {dst}: {getattr(error, "strerror", None) or error}'
                        ) from error
    if path.suffix.lower() in ('.onnx', '.xml', '.pt2'):
        raise UserError(f'can\'t write {path}: weights are saved as {", ".join(_SUFFIXES[:-1])} or '
                        f'{_SUFFIXES[-1]}, and evit-mm export CONFIG CHECKPOINT --out {path} '
                        'writes a model that runs without PyTorch')
    if path.suffix not in _SUFFIXES:
        raise UserError(f'can\'t write {path}: weights are saved as {", ".join(_SUFFIXES[:-1])} or '
                        f'{_SUFFIXES[-1]}, not as {path.suffix}')
    if exists and not overwrite:
        raise UserError(f'can\'t write {path}: it exists; choose another name, or overwrite it '
                        'with --overwrite (overwrite=True)')
    if not has_folder:
        raise UserError(f'no such folder: {path.parent}')
    return path


def _dataset_meta(checkpoint: Any) -> dict[str, Any]:
    """Return the class names and palette of a detector's checkpoint, if they are plain data."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    dataset_meta = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    try:
        return json.loads(json.dumps(dataset_meta)) if isinstance(dataset_meta, Mapping) else {}
    except (TypeError, ValueError, RecursionError):
        return {}


def _backbone_lines(structure: Structure | None, prefix: str) -> list[tuple[str, str]]:
    under = f', under {prefix}*' if prefix else ''
    if structure is None:
        return [('layout', f'unknown{under}')]
    fused = ', fused: BN is folded into the convolutions' if structure.fused else ''
    missing = NUM_STAGES - len(structure.depths)
    cut = f', without the last {missing} stages' if missing else ''
    widths = ', '.join(map(str, structure.embed_dims))
    windows = ', '.join(str(size) if size else '?' for size in structure.window_sizes)
    return [('layout', f'{structure.layout.name}{fused}{under}'),
            ('arch', f'{variant_of(structure) or "a custom variant"} (widths {widths}){cut}'),
            ('windows', windows)]


def _tensors(tensors: Iterable[Tensor]) -> str:
    tensors = list(tensors)
    dtypes = Counter(str(tensor.dtype).removeprefix('torch.') for tensor in tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    parameters = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    counts = ', '.join(f'{count} {name}' for name, count in dtypes.items())
    return f'{len(tensors)} ({counts}), {parameters / 1e6:.2f} M numbers, {_bytes(size)}'


def _extras(checkpoint: Any, weights: Weights | None) -> list[tuple[str, str]]:
    """Return a line for every entry of a checkpoint that is not the weights."""
    if not isinstance(checkpoint, Mapping):
        return [('content', type(checkpoint).__name__)]
    lines = []
    for key, value in checkpoint.items():
        if (weights and weights.place[:1] == (key,)) or isinstance(value, Tensor | np.ndarray):
            continue
        if isinstance(value, Mapping):
            names = sorted(map(str, value))
            text = f'{len(value)} entries' + ': ' * bool(names) + ', '.join(names[:8]) + \
                ', ...' * (len(names) > 8)
        else:
            text = f'{type(value).__name__}, {" ".join(_SHORT.repr(value).split())[:80]}'
        lines.append((f'extra: {key}', text))
    return lines


def _modules(keys: Iterable[str]) -> str:
    """List the outermost modules of keys, with the number of keys of each."""
    counts = Counter(key.split('.')[0] for key in keys)
    return ', '.join(f'{name}.* ({count})' for name, count in counts.items())


def _bytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size} bytes'


def _aligned(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return '\n'.join(_printable(f'{name:<{width}}  {text}'.rstrip()) for name, text in lines)


def _printable(text: str) -> str:
    """Replace control characters, with which the keys of a file could steer the terminal."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text)
