"""Safe loading of checkpoints for mmengine: tensors, plain data, and a short allow-list.

torch >= 2.6 refuses mmengine's own training checkpoints, because they hold logged values as
`HistoryBuffer` objects and numpy arrays; that breaks resuming (mmengine #1655), and the usual
answers switch the safety off. Here the classes of such a checkpoint are allowed by name and
nothing else is: a file that would run code is refused, whichever way it is reached.
"""

import functools
import http.client
import os
import pickle
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError

__all__ = ['install', 'load_checkpoint_file', 'load_checkpoint_url']

_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer
_GUARDED = '_evit_mm_guarded'


def _allowed_globals() -> list[Any]:
    """What mmengine's training checkpoints hold beside tensors and plain data."""
    from mmengine.logging import HistoryBuffer

    def statistic(owner: type, name: str) -> Any:
        """Stands for getattr, by which a HistoryBuffer refers to its own four methods."""
        if owner is HistoryBuffer and name in ('current', 'max', 'mean', 'min'):
            return getattr(owner, name)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr of {name}')

    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    allowed: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, (statistic, 'builtins.getattr')]
    for function in (multiarray._reconstruct, multiarray.scalar):
        # The module's name differs between numpy 1 and 2, and files of both are around.
        allowed += [(function, f'numpy.{core}.multiarray.{function.__name__}')
                    for core in ('core', '_core')]
    allowed += [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != 'ObjectDType']
    return allowed


def load_checkpoint_file(filename: str | os.PathLike[str],
                         map_location: str | Callable[..., Any] | torch.device | None = None
                         ) -> Any:
    """Load a checkpoint without running any code from it.

    Args:
        filename: A file that `torch.save` wrote.
        map_location: As in `torch.load`.

    Returns:
        What the file holds, usually a dict.

    Raises:
        CheckpointError: If there is no such file, it is no checkpoint, it is cut off, or it
            holds anything but tensors, plain data and the classes of a training checkpoint.
    """
    path = _existing_file(filename)
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            # Said explicitly, so that no environment variable can switch it off.
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damage can surface as nearly anything
        if 'torch.cuda.is_available() is False' in str(error):
            return load_checkpoint_file(path, map_location='cpu')
        raise CheckpointError(_explain(path, error)) from error
    return _without_code(checkpoint)


def load_checkpoint_url(url: str,
                        map_location: str | Callable[..., Any] | torch.device | None = None
                        ) -> Any:
    """Download a checkpoint once, into torch's hub cache, and load it safely.

    A download that fails leaves no half file behind, and processes that ask at the same time wait
    for one download. A file name that ends in eight or more hexadecimal digits after a dash, as
    torch's and OpenMMLab's do, is checked against the file's SHA-256.

    Args:
        url: An http or https address.
        map_location: As in `torch.load`.

    Returns:
        What the file holds, usually a dict.

    Raises:
        CheckpointError: If it can't be downloaded, or as in `load_checkpoint_file`.
    """
    return load_checkpoint_file(download(url), map_location)


def download(url: str) -> Path:
    """The local copy of ``url``, downloaded if it is not there yet.

    Raises:
        CheckpointError: If it can't be downloaded in full; the sentence says how to go on.
    """
    from filelock import FileLock

    try:
        name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
    except ValueError as error:
        raise CheckpointError(f'{url} is no address: {error}') from error
    if not name:
        raise CheckpointError(f'{url} names no file')
    target = Path(torch.hub.get_dir()) / 'checkpoints' / name
    try:
        if target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{target}.lock'):
            if not target.is_file():
                _fetch(url, target)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, 'reason', None) or error
        raise CheckpointError(
            f'could not download {url} ({reason}); put the file at {target} yourself, or name a '
            'local file in the config') from error
    return target


def _fetch(url: str, target: Path) -> None:
    """Download to a file beside ``target`` and rename it when it is complete."""
    digest = re.search(r'-([0-9a-f]{8,64})\.\w+$', target.name)
    part = target.with_name(f'{target.name}.part')
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method='HEAD')) as answer:
            expected = answer.headers.get('Content-Length')
    except (urllib.error.HTTPError, http.client.HTTPException):
        expected = None  # a server may answer GET alone
    try:
        torch.hub.download_url_to_file(url, str(part), digest and digest[1],
                                       progress=int(os.environ.get('LOCAL_RANK', 0)) == 0)
        if expected and part.stat().st_size != int(expected):
            raise OSError(f'the connection ended after {part.stat().st_size} of {expected} bytes')
        part.replace(target)
    finally:
        socket.setdefaulttimeout(timeout)
        part.unlink(missing_ok=True)


def install() -> None:
    """Make every loader of mmengine that reads files or addresses a safe one; idempotent."""
    from mmengine.runner import checkpoint as mmengine_checkpoint

    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme('', load_from_local, force=True)
    loader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    # torchvision:// and mmcls:// resolve a name and hand the address to this function.
    mmengine_checkpoint.load_from_http = load_from_http
    for prefix, function in loader._schemes.items():
        if prefix not in ('', 'http://', 'https://') and not hasattr(function, _GUARDED):
            loader._schemes[prefix] = _guarded(function)


def _guarded(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of mmengine's that calls torch.load itself, kept from running code."""
    @functools.wraps(load)
    def guarded(filename: str, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        switch = os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
        try:
            with torch.serialization.safe_globals(_allowed_globals()):
                return _without_code(load(filename, map_location, *args, **kwargs))
        except CheckpointError:
            raise
        except Exception as error:
            text = ' '.join(str(error).split())[:200]
            raise CheckpointError(f'{filename} can\'t be loaded: {type(error).__name__}: {text}'
                                  ) from error
        finally:
            if switch is not None:
                os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = switch

    setattr(guarded, _GUARDED, True)
    return guarded


# mmengine logs a loader's name from its tenth letter on: "Loads checkpoint by local backend".
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """`load_checkpoint_file` with the signature of mmengine's loaders."""
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: Any = None, *_: Any, **__: Any) -> Any:
    """`load_checkpoint_url` with the signature of mmengine's loaders."""
    return load_checkpoint_url(filename, map_location)


def _existing_file(filename: str | os.PathLike[str]) -> Path:
    try:
        path = Path(filename).expanduser()
        if path.is_file():
            return path
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null byte
        raise CheckpointError(f'{filename} is no usable file name: {error}') from error
    raise CheckpointError(f'{path} is not a file: a checkpoint (.pth) is needed' if exists
                          else f'no such checkpoint: {path}')


def _without_code(checkpoint: Any) -> Any:
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
                'which is not on the allow-list; save only its state_dict where you trust the file')
    return f'{path} can\'t be read as a checkpoint: it is {_damage(path)}; fetch or save it again'


def _damage(path: Path) -> str:
    try:
        with path.open('rb') as file:
            head = file.read(64)
    except OSError as error:
        return f'not readable ({error.strerror})'
    if not head:
        return 'empty'
    if head.startswith(b'PK'):
        return 'damaged' if zipfile.is_zipfile(path) else 'cut off before its end'
    if path.suffix == '.safetensors':
        return 'a safetensors file, which is not supported yet'
    if head.lstrip()[:1] in (b'<', b'{') or head.isascii():
        return 'text, not a checkpoint'
    return 'damaged or no checkpoint of torch'
