"""Download a file once: resumable, checked, and never half in the cache."""

import hashlib
import http.client
import json
import os
import re
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import IO, Any

import torch
from mmengine.logging import print_log

from ..errors import CheckpointError

__all__ = ['cached_file', 'download']

_TIMEOUT = 30.0  # seconds without an answer
_ATTEMPTS = 5  # connections in a row that each brought the file further
_PAUSE = 1.0  # seconds between two of them
_CHUNK = 1 << 18  # bytes
# torch's and OpenMMLab's custom; eight digits that are a date are no checksum.
_SHA256_IN_NAME = re.compile(
    r'-(?!20\d\d(?:0\d|1[0-2])[0-3]\d\.)([0-9a-f]{8,64})\.\w+$')
_WEIGHTS = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')  # suffixes
_HUB_FILE = re.compile(r'/([\w.-]+)/([\w.-]+)/resolve/([^/]+)/(.+)')


def download(url: str, *, sha256: str | None = None,
             damage: Callable[[Path], str | None] | None = None) -> Path:
    """The local copy of ``url``, downloaded into torch's hub cache if it is not there yet.

    Processes that ask at the same time wait for one download. A connection that ends early is
    taken up again where it ended, now or at the next call, if the server can say that the file
    is still the same (an ETag or a date); otherwise nothing is left behind. The file enters the
    cache under its name only when it is whole; under another one where a file from another
    address is called the same.

    Args:
        url: An http or https address.
        sha256: The file's SHA-256, or the beginning of it. Where it is not given, the one in the
            file's name counts, or the one that Hugging Face's hub tells.
        damage: Says what is wrong with a complete download, or None; the last check before the
            file enters the cache.

    Raises:
        CheckpointError: If it can't be downloaded in full; the sentence says how to go on.
    """
    target = cached_file(url)
    try:
        origin = _origin(url)
        if _fetched(url, target, sha256, damage) != origin:
            digest = hashlib.sha256(origin.encode()).hexdigest()
            target = target.with_name(f'{digest[:12]}--{target.name}')
            _fetched(url, target, sha256, damage)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        reason = ' '.join(str(getattr(error, 'reason', None) or error or
                              type(error).__name__).split())
        raise CheckpointError(
            f'could not download {url} ({reason}); put the file at {target} yourself, or name a '
            'local file in the config') from error
    return target


def _fetched(url: str, target: Path, sha256: str | None,
             damage: Callable[[Path], str | None] | None) -> str:
    """Download ``url`` if ``target`` is not there; the origin of what is there then."""
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if not target.is_file():
                _Download(url, target).run(sha256, damage)
    try:
        return _origin_note(target).read_text()
    except FileNotFoundError:  # put there by hand, or by torch
        return _origin(url)


def _origin(url: str) -> str:
    """What tells a file from others of its name: its address, less what only opens it."""
    address = urllib.parse.urlparse(url)
    if _HUB_FILE.fullmatch(urllib.parse.unquote(address.path)):
        return address.path  # the hub, and mirrors of it
    # Behind a name of weights stands a signature; behind 'download', what is meant.
    query = '' if address.path.endswith(_WEIGHTS) else address.query
    return f'{address.hostname}:{address.port or ""}{address.path}?{query}'


def _origin_note(target: Path) -> Path:
    return target.with_name(f'{target.name}.origin')


def cached_file(url: str) -> Path:
    """Where the copy of ``url`` lies.

    Under the file's name, as torch puts it. Files of Hugging Face's hub, most of which are called
    model.safetensors, get the name of their repository before it.

    Raises:
        CheckpointError: If the address names no file.
    """
    try:
        address = urllib.parse.urlparse(url)
        path = urllib.parse.unquote(address.path)
    except ValueError as error:
        raise CheckpointError(f'{url} is no address: {error}') from error
    if address.scheme not in ('http', 'https'):
        raise CheckpointError(f'{url} is no http or https address')
    in_hub = _HUB_FILE.fullmatch(path)
    name = '--'.join(in_hub.groups()).replace('/', '--') if in_hub else path.rpartition('/')[2]
    if name in ('', '.', '..') or not name.isprintable():
        raise CheckpointError(f'{url} names no file')
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep other processes out. The system frees the lock of a process that died."""
    from filelock import FileLock, Timeout

    lock = FileLock(f'{target}.lock')
    try:
        lock.acquire(timeout=5)
    except Timeout:
        print_log(f'another process downloads {target.name}; waiting for it', logger='current')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _CutOff(OSError):
    """The connection ended before the file did."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, never from https to anything less, and keeps what the hub says."""

    linked_etag: str | None = None

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
                         headers: http.client.HTTPMessage, newurl: str
                         ) -> urllib.request.Request | None:
        """As in urllib."""
        if req.full_url.startswith('https:') and not newurl.startswith('https:'):
            raise urllib.error.URLError(f'redirected to {newurl}, which is not secure')
        # The hub answers with the address of its storage, and says here what lies there.
        self.linked_etag = headers.get('X-Linked-Etag') or self.linked_etag
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Download:
    """One file on its way into the cache.

    Beside ``target`` lie the part that has come so far and a note on what it is a part of.
    """

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.target = target
        self.part = target.with_name(f'{target.name}.part')
        self.note = target.with_name(f'{target.name}.part.json')
        self.hub_sha256: str | None = None

    def run(self, sha256: str | None, damage: Callable[[Path], str | None] | None) -> None:
        """Bring the whole file, check it, and only then give it its name."""
        in_name = _SHA256_IN_NAME.search(self.target.name)
        self._transfer_all()
        try:
            expected = sha256 or (in_name and in_name[1]) or self.hub_sha256
            if expected:
                found = _sha256(self.part)
                if not found.startswith(expected.lower()):
                    raise OSError(f'invalid hash: the SHA-256 of what came begins with '
                                  f'{found[:len(expected)][:16]}, not with {expected[:16]}')
            fault = damage(self.part) if damage else None
            if fault:
                raise OSError(f'what came is {fault}')
            _origin_note(self.target).write_text(_origin(self.url))
            self.part.replace(self.target)
        finally:
            self._discard()

    def _transfer_all(self) -> None:
        print_log(f'downloading {self.url} to {self.target}', logger='current')
        try:
            for attempt in range(_ATTEMPTS):
                before = self._resumable()[0]
                try:
                    return self._transfer()
                except _CutOff:
                    if self._resumable()[0] <= before or attempt == _ATTEMPTS - 1:
                        raise
                    time.sleep(_PAUSE)
        except BaseException:  # a full disk and an interruption leave parts too
            if not self._resumable()[0]:
                self._discard()
            raise

    def _transfer(self) -> None:
        """Open one connection and take what comes.

        Raises:
            _CutOff: If that is not all.
        """
        offset, known = self._resumable()
        answer = self._open(offset, known)
        with answer:
            length = answer.headers.get('Content-Length')
            total = int(length) if length and length.isdigit() else None
            if answer.status == 206:
                span = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)',
                                    answer.headers.get('Content-Range', ''))
                if not span or int(span[1]) != offset or span[2] not in ('*', str(known['total'])):
                    self._discard()
                    raise OSError('the server sent another part of the file than it was asked for')
                total = known['total']
            else:  # the whole file: it has changed, or the server knows no parts
                offset = 0
                self._take_note(answer.headers, total)
            with self.part.open('ab' if offset else 'wb') as file:
                received = offset + self._copy(answer, file, offset, total)
        if total is not None and received != total:
            raise _CutOff(f'the connection ended after {received} of {total} bytes')

    def _open(self, offset: int, known: dict[str, Any]) -> Any:
        redirects = _Redirects()
        opener = urllib.request.build_opener(redirects)
        headers = {'User-Agent': 'evit-mm', 'Accept-Encoding': 'identity'}
        if offset:
            headers.update({'Range': f'bytes={offset}-', 'If-Range': known['validator']})
        try:
            # As browsers do with spaces and letters that an address may not have.
            address = urllib.parse.quote(self.url, safe=string.punctuation)
            answer = opener.open(urllib.request.Request(address, headers=headers),
                                 timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416 or not offset:
                raise
            self._discard()  # the file has become shorter than its part
            return self._open(0, {})
        linked = (answer.headers.get('X-Linked-Etag') or redirects.linked_etag or '').strip('"')
        # The ETag of a large file is its SHA-256; that of a small one is git's.
        self.hub_sha256 = linked if re.fullmatch('[0-9a-f]{64}', linked) else None
        return answer

    def _copy(self, answer: Any, file: IO[bytes], offset: int, total: int | None) -> int:
        """Bytes that came, written to ``file``."""
        from tqdm import tqdm

        received = 0
        # Only the first process of a node shows a bar, and only on a terminal.
        hidden = True if int(os.environ.get('LOCAL_RANK', 0)) else None
        with tqdm(total=total, initial=offset, unit='B', unit_scale=True, desc=self.target.name,
                  disable=hidden) as bar:
            while True:
                try:
                    chunk = answer.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    of = f' of {total}' if total is not None else ''
                    raise _CutOff(f'the connection ended after {offset + received}{of} bytes'
                                  ) from error
                if not chunk:
                    return received
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))

    def _take_note(self, headers: Message, total: int | None) -> None:
        """Write down how to ask whether the file is still the same, where there is a way."""
        self._discard()
        etag = headers.get('ETag', '')
        validator = etag if etag.startswith('"') else headers.get('Last-Modified')
        if validator and total is not None:
            self.note.write_text(json.dumps(
                {'url': self.url, 'validator': validator, 'total': total}))

    def _resumable(self) -> tuple[int, dict[str, Any]]:
        """Bytes that need not come again, and the note on them."""
        try:
            known = json.loads(self.note.read_text())
            size = self.part.stat().st_size
            if known['url'] == self.url and known['validator'] and 0 < size < known['total']:
                return size, known
        except (OSError, ValueError, KeyError, TypeError):  # no note, or one cut off by a crash
            pass
        return 0, {}

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
