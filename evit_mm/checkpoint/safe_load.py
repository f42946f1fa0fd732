"""Load checkpoint files without running code from them.

Reads the files of `torch.save` and safetensors files.

torch >= 2.6 refuses mmengine's own training checkpoints, because they contain logged values as
`HistoryBuffer` objects and numpy arrays. That breaks resuming (mmengine #1655), and the usual
workarounds switch the protection off. Here the classes of such a checkpoint are on an allow-list,
and nothing else is: a file that would run code is refused, whoever asks for it.
"""

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ..errors import CheckpointError, MissingCheckpointError
from .download import download
from .pickle_limits import check_limits

__all__ = ['MapLocation', 'allowed_globals', 'download_checkpoint', 'existing_file', 'find_damage',
           'is_safetensors', 'load_checkpoint_file', 'without_code']

MapLocation: TypeAlias = str | Callable[..., Any] | torch.device | None
"""``map_location`` of `torch.load`."""

_NUMERIC = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'  # codes of numpy's dtypes
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def allowed_globals() -> list[Any]:
    """Return the classes that a training checkpoint may contain in addition to plain data.

    The format is that of `torch.serialization.safe_globals`.
    """
    from mmengine.logging import HistoryBuffer

    def statistic(owner: type, name: str) -> Any:
        """Replace getattr, through which a HistoryBuffer refers to its own four methods."""
        if owner is HistoryBuffer and name in ('current', 'max', 'mean', 'min'):
            return getattr(owner, name)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr of {name}')

    # Training programs of classifiers, Microsoft's among them, save their Namespace of options.
    return [HistoryBuffer, argparse.Namespace, (statistic, 'builtins.getattr'),
            *_allowed_of_numpy()]


def _allowed_of_numpy() -> list[Any]:
    """Return what numeric arrays and scalars need.

    numpy's own constructors would let a file change a dtype (its flags, or object fields of a
    record) so that numpy treats bytes of the file as addresses of objects, and would let it place
    one array on the memory of another. The functions that replace them can do neither.
    """
    def numeric_dtype(code: Any, *_: Any) -> np.dtype:
        """Replace np.dtype; return numpy's own dtype, in this machine's byte order.

        numpy ignores the changes that a file requests to those.
        """
        dtype = np.dtype(code) if isinstance(code, str) else None
        if dtype is None or dtype.char not in _NUMERIC or not dtype.isnative:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype of {code!r}')
        return np.dtype(dtype.char)

    def empty_array(*_: Any) -> np.ndarray:
        """Replace np.ndarray and its constructor; the array receives its content afterwards."""
        return np.empty(0)

    # Not by its module: numpy 1.26 has a `numpy._core` too, but an empty one, for files of numpy 2.
    scalar = np.float64().__reduce__()[0]
    allowed: list[Any] = [(numeric_dtype, 'numpy.dtype'), (empty_array, 'numpy.ndarray')]
    # numpy 1 and 2 use different module names, and files of both are in use.
    for core in ('core', '_core'):
        allowed += [(empty_array, f'numpy.{core}.multiarray._reconstruct'),
                    (scalar, f'numpy.{core}.multiarray.scalar')]
    # Classes whose objects may receive content. A file can't name them: its names contain a dot.
    allowed += [(type(np.dtype(code)), f'type {code}') for code in _NUMERIC]
    return [*allowed, (np.ndarray, 'array')]


def load_checkpoint_file(filename: str | os.PathLike[str], map_location: MapLocation = None, *,
                         trust: bool = False) -> Any:
    """Load a checkpoint file without running any code from it.

    Args:
        filename: A file of `torch.save` or a safetensors file, whatever its suffix.
        map_location: As in `torch.load`.
        trust: Run the code that the file asks for. Only for files of people whose programs you
            would run; none of mmengine's loaders sets it.

    Returns:
        The content, usually a dict. For a safetensors file, a dict with its tensors as
        ``state_dict`` and the strings of its header as ``meta``.

    Raises:
        MissingCheckpointError: If there is no such file.
        CheckpointError: If the file is not a checkpoint, is damaged, or contains anything other
            than tensors, plain data and the classes of a training checkpoint.
    """
    path = existing_file(filename)
    damage = find_damage(path)
    if damage:
        raise CheckpointError(_unreadable(path, damage))
    if is_safetensors(path):
        return _load_safetensors(path, map_location)
    try:
        if not trust:
            check_limits(path)
        with torch.serialization.safe_globals(allowed_globals()):
            # Passed explicitly, so that no environment variable can switch it off.
            checkpoint = torch.load(path, map_location=map_location, weights_only=not trust)
    except Exception as error:  # damage can surface as almost any type
        if 'torch.cuda.is_available() is False' in str(error):
            return load_checkpoint_file(path, map_location='cpu', trust=trust)
        raise CheckpointError(_explain(path, error)) from error
    return without_code(checkpoint)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is a safetensors file, by its content or its suffix."""
    with path.open('rb') as file:
        head = file.read(9)
    return path.suffix == '.safetensors' or head[8:] == b'{' and not head.startswith(b'PK')


def _load_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    # torch.load calls a callable once for each storage; a safetensors file has none.
    device = 'cpu' if map_location is None or callable(map_location) else str(map_location)
    if device.startswith('cuda') and not torch.cuda.is_available():
        device = 'cpu'
    try:
        with safe_open(path, framework='pt', device=device) as file:
            meta: dict[str, Any] = dict(file.metadata() or {})
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        detail = ' '.join(str(error).split())[:120]
        raise CheckpointError(_unreadable(path, f'damaged ({detail})')) from error
    if 'dataset_meta' in meta:  # the classes of a detector, as write_weights saves them
        try:
            meta['dataset_meta'] = dict(json.loads(meta['dataset_meta']))
        except (ValueError, TypeError, RecursionError):
            del meta['dataset_meta']
    return without_code({'state_dict': state, 'meta': meta})


def download_checkpoint(url: str, *, sha256: str | None = None) -> Path:
    """Return the local copy of a checkpoint; only a checkpoint enters the cache.

    Raises:
        CheckpointError: If it can't be downloaded completely.
    """
    return download(url, sha256=sha256, find_damage=find_damage)


def existing_file(filename: str | os.PathLike[str]) -> Path:
    """Return the path of a file that exists and may be read.

    Raises:
        MissingCheckpointError: If there is no such file.
        CheckpointError: If it may not be opened.
    """
    try:
        path = Path(filename).expanduser()
        if path.is_file():
            path.open('rb').close()
            return path
        is_folder = path.is_dir()
    except PermissionError as error:
        raise CheckpointError(f'can\'t open {filename}: you have no permission to read it or its '
                              'folder') from error
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null byte
        reason = getattr(error, 'strerror', None) or error
        raise MissingCheckpointError(f'{str(filename)!r} is not a valid file name: {reason}'
                                     ) from error
    raise MissingCheckpointError(f'{path} is a folder: name a checkpoint file (.pth, .pt or '
                                 '.safetensors)' if is_folder else f'no such file: {path}')


def without_code(checkpoint: Any) -> Any:
    """Drop the one entry that mmengine would execute as Python code when resuming."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)  # executed by Runner.resume; only mmcv 1.x writes it
    return checkpoint


def _explain(path: Path, error: Exception) -> str:
    """Return the message for a file that would run code, or for one that is damaged."""
    match = None
    if isinstance(error, pickle.UnpicklingError):
        match = re.search(r'GLOBAL (\S+)', str(error)) or \
            re.search(r'but got <class \'([\w.]+)\'>', str(error))
    if match:
        return (f'{path} is refused, because loading it would run code: it refers to '
                f'{_printable(match[1])}, which is not on the allow-list; if you trust its '
                'author, `evit-mm convert '
                f'{path} OUTPUT --trust` extracts its weights')
    detail = ''
    if type(error) is pickle.UnpicklingError:
        # torch wraps the reason into advice to load the file unsafely.
        reason = str(error).rpartition('WeightsUnpickler error: ')[2]
        detail = f' ({_printable(reason)})'
    return _unreadable(path, f'damaged or not a file of torch.save{detail}')


def _printable(text: str) -> str:
    """Return what a file may have put into a message, as one short line that any terminal shows."""
    line = ' '.join(text.split())[:200]
    return ''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def _unreadable(path: Path, damage: str) -> str:
    return (f'{path} can\'t be read as a checkpoint: it is {damage}; download or save it again')


def find_damage(path: Path) -> str | None:
    """Describe the damage of a file, without loading it; None if it looks like a checkpoint."""
    with path.open('rb') as file:
        head = file.read(64)
    if not head:
        return 'empty'
    if head.startswith(b'PK'):
        if path.suffix == '.safetensors':  # that name promises that there is no pickle inside
            return 'a file of torch.save (.pth) with the suffix .safetensors'
        try:
            if not zipfile.is_zipfile(path):
                return 'cut off before its end'
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception:  # zipfile raises half a dozen types for what it can't parse
            return 'damaged in its directory of entries'
        is_program = any(name.endswith('/constants.pkl') for name in names)
        return 'a TorchScript program, not a checkpoint' if is_program else None
    if head[8:9] == b'{':
        return _safetensors_damage(path)
    if re.fullmatch(rb'[\t\n\r -~]*', head) or head.lstrip()[:1] in (b'<', b'{'):
        return 'text, not a checkpoint'
    if head.startswith(b'\x1f\x8b'):
        return 'compressed with gzip, not a checkpoint'
    if path.suffix == '.safetensors':
        return 'damaged or not a safetensors file'
    # torch's old format is a sequence of pickles of protocol 2 or higher.
    return None if head.startswith(b'\x80') else 'damaged or not a checkpoint'


def _safetensors_damage(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if 8 + length > size:
            return 'cut off before its end, or its header has a wrong length'
        if length > _MAX_HEADER:
            return 'damaged in its header'
        try:
            header = json.loads(file.read(length))
            ends = [entry['data_offsets'][1] for name, entry in header.items()
                    if name != '__metadata__']
            missing = 8 + length + max(ends, default=0) - size
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return 'damaged in its header'
    if missing > 0:
        return f'cut off before its end ({missing} bytes that its header lists are missing)'
    return None
