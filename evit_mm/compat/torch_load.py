"""Safe loading of checkpoints for mmengine: tensors, plain data, and a short allow-list.

torch >= 2.6 refuses mmengine's own training checkpoints, because they hold logged values as
`HistoryBuffer` objects and numpy arrays; that breaks resuming (mmengine #1655), and the usual
answers switch the safety off. Here the classes of such a checkpoint are allowed by name and
nothing else is: a file that would run code is refused, whichever way it is reached.
"""

import os
import pickle
import re
import urllib.error
import urllib.parse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import CheckpointError

__all__ = ['install', 'load_checkpoint_file', 'load_checkpoint_url']

_DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


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
    path = Path(filename).expanduser()
    if not path.exists():
        raise CheckpointError(f'no such checkpoint: {path}')
    if not path.is_file():
        raise CheckpointError(f'{path} is not a file: a checkpoint (.pth) is needed')
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            # Said explicitly, so that no environment variable can switch it off.
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_explain(path, error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError,
            zipfile.BadZipFile, UnicodeDecodeError, TypeError) as error:
        if 'cuda' in str(error).lower() and 'is_available() is False' in str(error):
            return load_checkpoint_file(path, map_location='cpu')
        raise CheckpointError(
            f'{path} can\'t be read as a checkpoint: it is {_damage(path)}; fetch or save it '
            'again') from error
    return _without_code(checkpoint)


def load_checkpoint_url(url: str,
                        map_location: str | Callable[..., Any] | torch.device | None = None
                        ) -> Any:
    """Download a checkpoint once, into torch's hub cache, and load it safely.

    A download that fails leaves nothing behind, and processes that ask at the same time wait for
    one download. A file name that ends in eight or more hexadecimal digits after a dash, as
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
        CheckpointError: If it can't be downloaded; the sentence says how to go on without.
    """
    import socket

    from filelock import FileLock

    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
    if not name:
        raise CheckpointError(f'{url} names no file')
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    target = folder / name
    if target.is_file():
        return target
    digest = re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    timeout = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{target}.lock'):
            if not target.is_file():
                socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
                torch.hub.download_url_to_file(url, str(target), digest and digest[1],
                                               progress=int(os.environ.get('LOCAL_RANK', 0)) == 0)
    except (OSError, RuntimeError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, 'reason', None) or error
        raise CheckpointError(
            f'could not download {url} ({reason}); put the file at {target} yourself, or name a '
            'local file in the config'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return target


def install() -> None:
    """Make every loader of mmengine that reads files or addresses the safe one; idempotent."""
    from mmengine.runner import checkpoint as mmengine_checkpoint

    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme('', load_from_local, force=True)
    loader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    # The loaders of torchvision://, open-mmlab:// and their like resolve a name to an address
    # and hand it to these module-level functions.
    mmengine_checkpoint.load_from_local = load_from_local
    mmengine_checkpoint.load_from_http = load_from_http


# mmengine logs a loader's name from its tenth letter on: "Loads checkpoint by local backend".
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """`load_checkpoint_file` with the signature of mmengine's loaders."""
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: Any = None, *_: Any, **__: Any) -> Any:
    """`load_checkpoint_url` with the signature of mmengine's loaders."""
    return load_checkpoint_url(filename, map_location)


def _without_code(checkpoint: Any) -> Any:
    """Drop the one entry that mmengine would execute as Python when resuming."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)  # Runner.resume runs it; only checkpoints of mmcv 1.x have it
    return checkpoint


def _explain(path: Path, error: pickle.UnpicklingError) -> str:
    """Tell a file that would run code from one that is damaged."""
    match = re.search(r'GLOBAL ((?:\w+\.)*\w+)', str(error)) or \
        re.search(r'but got <class \'([\w.]+)\'>', str(error)) or \
        re.search(r'load unsupported GLOBAL ([\w.]+)', str(error))
    if match:
        return (f'{path} is refused, because loading it would run code: it refers to {match[1]}, '
                'which is not on the allow-list; save only its state_dict where you trust the file')
    return (f'{path} can\'t be read as a checkpoint: it is {_damage(path)}; fetch or save it again')


def _damage(path: Path) -> str:
    with path.open('rb') as file:
        head = file.read(64)
    if not head:
        return 'empty'
    if head.startswith(b'PK') and not zipfile.is_zipfile(path):
        return 'cut off before its end'
    if head.lstrip()[:1] in (b'<', b'{') or head.isascii():
        return 'text, not a checkpoint'
    return 'damaged or no checkpoint of torch'
