"""Safe loading of checkpoints for mmengine: tensors, plain data, and a short allow-list.

Reads what `torch.save` wrote, and safetensors.

torch >= 2.6 refuses mmengine's own training checkpoints, because they hold logged values as
`HistoryBuffer` objects and numpy arrays; that breaks resuming (mmengine #1655), and the usual
answers switch the safety off. Here the classes of such a checkpoint are allowed by name and
nothing else is: a file that would run code is refused, whichever way it is reached.
"""

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError
from .download import download

__all__ = ['allowed_globals', 'download_checkpoint', 'existing_file', 'is_safetensors',
           'load_checkpoint_file', 'load_checkpoint_url', 'without_code']

_WAY_OUT = 'tools/convert_weights.py --trust'
_NUMBERS = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'  # numpy's codes of types
_LONGEST_HEADER = 100_000_000  # bytes; safetensors reads no longer one


def allowed_globals() -> list[Any]:
    """What training checkpoints hold beside tensors and plain data."""
    from mmengine.logging import HistoryBuffer

    def statistic(owner: type, name: str) -> Any:
        """Stands for getattr, by which a HistoryBuffer refers to its own four methods."""
        if owner is HistoryBuffer and name in ('current', 'max', 'mean', 'min'):
            return getattr(owner, name)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr of {name}')

    # The training programs of classifiers, Microsoft's among them, save their Namespace of options.
    return [HistoryBuffer, argparse.Namespace, (statistic, 'builtins.getattr'),
            *_allowed_of_numpy()]


def _allowed_of_numpy() -> list[Any]:
    """Arrays and scalars of numbers.

    numpy's own constructors would let a file bend a type (its flags, or fields of objects in a
    record), so that numpy takes bytes of the file for addresses of objects, and lay one array over
    the memory of another. In their place stand functions that can do neither.
    """
    def number_type(code: Any, *_: Any) -> np.dtype:
        """Stands for np.dtype. What it gives is numpy's own, in this machine's byte order.

        numpy ignores what a file wants to change in those.
        """
        found = np.dtype(code) if isinstance(code, str) else None
        if found is None or found.char not in _NUMBERS or not found.isnative:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype of {code!r}')
        return np.dtype(found.char)

    def empty_array(*_: Any) -> np.ndarray:
        """Stands for np.ndarray and its maker; the array gets its content afterwards."""
        return np.empty(0)

    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    allowed: list[Any] = [(number_type, 'numpy.dtype'), (empty_array, 'numpy.ndarray')]
    # The module's name differs between numpy 1 and 2, and files of both are around.
    for core in ('core', '_core'):
        allowed += [(empty_array, f'numpy.{core}.multiarray._reconstruct'),
                    (multiarray.scalar, f'numpy.{core}.multiarray.scalar')]
    # These may get their content. No file can name them: names in files have a dot.
    allowed += [(type(np.dtype(code)), f'type {code}') for code in _NUMBERS]
    return [*allowed, (np.ndarray, 'array')]


def load_checkpoint_file(filename: str | os.PathLike[str],
                         map_location: str | Callable[..., Any] | torch.device | None = None, *,
                         trust: bool = False) -> Any:
    """Load a checkpoint without running any code from it.

    Args:
        filename: A file that `torch.save` wrote, or a safetensors file, whatever its suffix.
        map_location: As in `torch.load`.
        trust: Run the code that the file asks for. Only for a file of people whom one would let
            run a program; no loader of mmengine comes here with it.

    Returns:
        What the file holds, usually a dict. For a safetensors file, its tensors as ``state_dict``
        and the text in its header as ``meta``.

    Raises:
        CheckpointError: If there is no such file, it is no checkpoint, it is cut off, or it
            holds anything but tensors, plain data and the classes of a training checkpoint.
    """
    path = existing_file(filename)
    damage = file_damage(path)
    if damage:
        raise CheckpointError(_unreadable(path, damage))
    if is_safetensors(path):
        return _load_safetensors(path, map_location)
    try:
        with torch.serialization.safe_globals(allowed_globals()):
            # Said explicitly, so that no environment variable can switch it off.
            checkpoint = torch.load(path, map_location=map_location, weights_only=not trust)
    except Exception as error:  # damage can surface as nearly anything
        if 'torch.cuda.is_available() is False' in str(error):
            return load_checkpoint_file(path, map_location='cpu', trust=trust)
        raise CheckpointError(_explain(path, error)) from error
    return without_code(checkpoint)


def is_safetensors(path: Path) -> bool:
    """Whether a file is, or by its name ought to be, a safetensors file."""
    with path.open('rb') as file:
        head = file.read(9)
    return path.suffix == '.safetensors' or head[8:] == b'{' and not head.startswith(b'PK')


def _load_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    # A callable of torch.load places one storage after the other; there are none here.
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
    if 'dataset_meta' in meta:  # the classes of a detector, written by tools/convert_weights.py
        try:
            meta['dataset_meta'] = dict(json.loads(meta['dataset_meta']))
        except (ValueError, TypeError, RecursionError):
            del meta['dataset_meta']
    return without_code({'state_dict': state, 'meta': meta})


def load_checkpoint_url(url: str,
                        map_location: str | Callable[..., Any] | torch.device | None = None
                        ) -> Any:
    """Download a checkpoint once, into torch's hub cache, and load it safely; see `download`.

    Args:
        url: An http or https address.
        map_location: As in `torch.load`.

    Returns:
        As `load_checkpoint_file`.

    Raises:
        CheckpointError: If it can't be downloaded, or as in `load_checkpoint_file`.
    """
    return load_checkpoint_file(download_checkpoint(url), map_location)


def download_checkpoint(url: str, *, sha256: str | None = None) -> Path:
    """The local copy of a checkpoint; what is no checkpoint does not enter the cache.

    Raises:
        CheckpointError: If it can't be downloaded in full.
    """
    return download(url, sha256=sha256, damage=file_damage)


def existing_file(filename: str | os.PathLike[str]) -> Path:
    """The path of a file that exists.

    Raises:
        CheckpointError: If it does not, or the name can't be one.
    """
    try:
        path = Path(filename).expanduser()
        if path.is_file():
            path.open('rb').close()
            return path
        exists = path.exists()
    except PermissionError as error:
        raise CheckpointError(f'{filename} can\'t be opened: its permissions, or those of its '
                              'folder, do not let you read it') from error
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null byte
        reason = getattr(error, 'strerror', None) or error
        raise CheckpointError(f'{filename} is no usable file name: {reason}') from error
    raise CheckpointError(f'{path} is not a file: a checkpoint (.pth, .pt or .safetensors) is '
                          'needed' if exists else f'no such checkpoint: {path}')


def without_code(checkpoint: Any) -> Any:
    """Drop the one entry that mmengine would execute as Python when resuming."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)  # Runner.resume runs it; only checkpoints of mmcv 1.x have it
    return checkpoint


def _explain(path: Path, error: Exception) -> str:
    """Tell a file that would run code from one that is damaged."""
    match = None
    if isinstance(error, pickle.UnpicklingError):
        match = re.search(r'GLOBAL ((?:\w+\.)*\w+)', str(error)) or \
            re.search(r'but got <class \'([\w.]+)\'>', str(error))
    if match:
        return (f'{path} is refused, because loading it would run code: it refers to {match[1]}, '
                f'which is not on the allow-list; where you trust the file, {_WAY_OUT} takes its '
                'weights out of it')
    return _unreadable(path, 'damaged or no checkpoint of torch')


def _unreadable(path: Path, damage: str) -> str:
    return f'{path} can\'t be read as a checkpoint: it is {damage}; fetch or save it again'


def file_damage(path: Path) -> str | None:
    """What is wrong with a file, as far as a look from outside tells; None if it looks right."""
    with path.open('rb') as file:
        head = file.read(64)
    if not head:
        return 'empty'
    if head.startswith(b'PK'):
        if path.suffix == '.safetensors':  # that name promises that there is no pickle in it
            return 'a file of torch.save (.pth) under the name of a safetensors file'
        try:
            if not zipfile.is_zipfile(path):
                return 'cut off before its end'
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception:  # zipfile raises half a dozen kinds for what it can't make sense of
            return 'damaged in its list of contents'
        is_program = any(name.endswith('/constants.pkl') for name in names)
        return 'a TorchScript program, not a checkpoint' if is_program else None
    if head[8:9] == b'{':
        return _safetensors_damage(path)
    if re.fullmatch(rb'[\t\n\r -~]*', head) or head.lstrip()[:1] in (b'<', b'{'):
        return 'text, not a checkpoint'
    if head.startswith(b'\x1f\x8b'):
        return 'packed by gzip, not a checkpoint'
    if path.suffix == '.safetensors':
        return 'damaged or no safetensors file'
    # torch's older format is a row of pickles, of protocol 2 and up.
    return None if head.startswith(b'\x80') else 'damaged or no checkpoint'


def _safetensors_damage(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if 8 + length > size:
            return 'cut off before its end, or its header lies about its length'
        if length > _LONGEST_HEADER:
            return 'damaged in its header'
        try:
            header = json.loads(file.read(length))
            ends = [entry['data_offsets'][1] for name, entry in header.items()
                    if name != '__metadata__']
            missing = 8 + length + max(ends, default=0) - size
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return 'damaged in its header'
    if missing > 0:
        return f'cut off before its end ({missing} bytes are missing that its header names)'
    return None
