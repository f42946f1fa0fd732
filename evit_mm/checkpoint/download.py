"""Download files once: resumable, verified, and never incomplete in the cache."""

import hashlib
import http.client
import json
import os
import re
import socket
import string
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError

__all__ = ['cache_path', 'download']

_TIMEOUT = 30.0  # seconds without a response
_ATTEMPTS = 5  # consecutive connections, if each of them brings some progress
_STALL = 60.0  # seconds in which at least this much has to arrive, or the transfer ends:
_LEAST_BYTES = 1 << 14
_PAUSE = 1.0  # seconds between two connections
_CHUNK = 1 << 18  # bytes
# The convention of torch and OpenMMLab; eight digits that form a date are not a checksum.
_SHA256_IN_NAME = re.compile(
    r'-(?!20\d\d(?:0\d|1[0-2])[0-3]\d\.)([0-9a-f]{8,64})\.\w+$')
_WEIGHTS = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')  # suffixes
_HUB_FILE = re.compile(r'/([\w.-]+)/([\w.-]+)/resolve/([^/]+)/(.+)')


def download(url: str, *, sha256: str | None = None,
             find_damage: Callable[[Path], str | None] | None = None) -> Path:
    """Return the local copy of ``url``; download it into torch's hub cache if it is not there yet.

    Processes that call this at the same time wait for one download. An interrupted download is
    continued, in this call or the next, if the server can tell whether the file is still the same
    (an ETag or a date); otherwise nothing is kept. A file receives its name in the cache only when
    it is complete. It receives another name if a file of that name from another address is already
    there.

    Args:
        url: An http or https address.
        sha256: SHA-256 of the file, or its first digits. By default the one in the file name, or
            the one in the response of Hugging Face's hub.
        find_damage: Describes what is wrong with a complete download, or returns None; called
            before the file enters the cache.

    Raises:
        CheckpointError: If the file can't be downloaded completely; the message says what to do.
    """
    target = cache_path(url)
    try:
        origin = _origin(url)
        if _fetch(url, target, sha256, find_damage) != origin:
            digest = hashlib.sha256(origin.encode()).hexdigest()
            target = target.with_name(f'{digest[:12]}--{target.name}')
            _fetch(url, target, sha256, find_damage)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        reason = ' '.join(str(getattr(error, 'reason', None) or error or
                              type(error).__name__).split())
        raise CheckpointError(
            f'could not download {_printable(url)} ({_printable(reason)}); run it again, save the '
            f'file as {target}, or use a local file instead') from error
    return target


def _fetch(url: str, target: Path, sha256: str | None,
           find_damage: Callable[[Path], str | None] | None) -> str:
    """Download ``url`` unless ``target`` exists, and return the origin of ``target``."""
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if not target.is_file():
                _Download(url, target).run(sha256, find_damage)
    try:
        return _origin_note(target).read_text()
    except FileNotFoundError:  # the file was put there by hand, or by torch
        return _origin(url)


def _origin(url: str) -> str:
    """Return what distinguishes files of one name: their address, without credentials."""
    address = urllib.parse.urlparse(url)
    if _HUB_FILE.fullmatch(urllib.parse.unquote(address.path)):
        return address.path  # the same on the hub and its mirrors
    # The query of an address that ends in a file name is a signature; elsewhere it selects a file.
    query = '' if address.path.endswith(_WEIGHTS) else address.query
    return f'{address.hostname}:{address.port or ""}{address.path}?{query}'


def _origin_note(target: Path) -> Path:
    return target.with_name(f'{target.name}.origin')


def cache_path(url: str) -> Path:
    """Return the path of the local copy of ``url``.

    Its name is that of the file, as in torch's own downloads. For Hugging Face's hub, where most
    files are called model.safetensors, the name of the repository precedes it.

    Raises:
        CheckpointError: If ``url`` is malformed or names no file.
    """
    try:
        address = urllib.parse.urlparse(url)
        path = urllib.parse.unquote(address.path)
    except ValueError as error:
        raise CheckpointError(f'{url} is not a valid address: {error}') from error
    if address.scheme not in ('http', 'https'):
        raise CheckpointError(f'{url} is not an http or https address')
    in_hub = _HUB_FILE.fullmatch(path)
    name = '--'.join(in_hub.groups()).replace('/', '--') if in_hub else path.rpartition('/')[2]
    if name in ('', '.', '..') or not name.isprintable():
        raise CheckpointError(f'{url} does not name a file')
    return Path(torch.hub.get_dir()) / 'checkpoints' / name


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Exclude other processes. The system releases the lock of a process that died."""
    from filelock import FileLock, Timeout

    lock = FileLock(f'{target}.lock')
    try:
        lock.acquire(timeout=5)
    except Timeout:
        _log(f'another process is downloading {target.name}; waiting for it')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _printable(text: str) -> str:
    """Return a text of a server without characters that control a terminal."""
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode()
                   for letter in text)


class _CutOff(OSError):
    """A connection that ended before the file was complete."""


class _StallWatch:
    """Watch over a transfer that closes its connection when too little arrives.

    A timeout of the socket is not enough: a server that sends a byte, or another header, each few
    seconds would hold a download for ever.

    Attributes:
        received: Bytes of the file so far.
        connection: The socket in use, if any.
        stalled: Whether it was closed.
    """

    def __init__(self) -> None:
        self.received = 0
        self.connection: socket.socket | None = None
        self.stalled = False
        self._over = threading.Event()

    def __enter__(self) -> '_StallWatch':
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        before = 0
        while not self._over.wait(_STALL):
            if self.received - before < _LEAST_BYTES:
                self.stalled = True
                if self.connection is not None:
                    with suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                return
            before = self.received


def _watched_handlers(watch: _StallWatch) -> list[urllib.request.BaseHandler]:
    """Return handlers of http and https that tell a watch which socket they use."""
    def watched(kind: type[http.client.HTTPConnection]) -> Any:
        class Connection(kind):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                watch.connection = self.sock

        return Connection

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPConnection), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(watched(http.client.HTTPSConnection), req)

    return [Http(), Https()]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A redirect handler that never leaves https, and keeps the hub's checksum."""

    linked_etag: str | None = None

    def redirect_request(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
                         headers: http.client.HTTPMessage, newurl: str
                         ) -> urllib.request.Request | None:
        """Return the request to follow, as in urllib."""
        scheme = urllib.parse.urlparse(newurl).scheme
        if req.full_url.startswith('https:') and scheme != 'https':
            raise urllib.error.URLError(f'redirected to {newurl}, which is not secure')
        if scheme not in ('http', 'https'):
            raise urllib.error.URLError(f'redirected to {newurl}, which is not an http or https '
                                        'address')
        # The hub redirects to its storage; this header holds the checksum of the file there.
        self.linked_etag = headers.get('X-Linked-Etag') or self.linked_etag
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Download:
    """A download in progress.

    Next to ``target`` are the part received so far, and a note that identifies the whole file.
    """

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.target = target
        self.part = target.with_name(f'{target.name}.part')
        self.note = target.with_name(f'{target.name}.part.json')
        self.hub_sha256: str | None = None

    def run(self, sha256: str | None, find_damage: Callable[[Path], str | None] | None) -> None:
        """Download the whole file, verify it, and then move it to ``target``."""
        in_name = _SHA256_IN_NAME.search(self.target.name)
        self._transfer_all()
        try:
            expected = sha256 or (in_name and in_name[1]) or self.hub_sha256
            if expected:
                actual = _sha256(self.part)
                if not actual.startswith(expected.lower()):
                    raise OSError(f'invalid hash: the SHA-256 of the download starts with '
                                  f'{actual[:len(expected)][:16]}, not with {expected[:16]}')
            damage = find_damage(self.part) if find_damage else None
            if damage:
                raise OSError(f'the download is {damage}')
            _origin_note(self.target).write_text(_origin(self.url))
            self.part.replace(self.target)
        finally:
            self._discard()

    def _transfer_all(self) -> None:
        _log(f'downloading {self.url} to {self.target}')
        try:
            for attempt in range(_ATTEMPTS):
                before = self._resumable()[0]
                try:
                    return self._transfer()
                except _CutOff:
                    if self._resumable()[0] <= before or attempt == _ATTEMPTS - 1:
                        raise
                    time.sleep(_PAUSE)
        except BaseException:  # a full disk or an interruption leaves a part too
            if not self._resumable()[0]:
                self._discard()
            raise

    def _transfer(self) -> None:
        """Open one connection and append what it delivers to the part.

        Raises:
            _CutOff: If the file is not complete afterwards.
        """
        offset, note = self._resumable()
        with _StallWatch() as watch:
            try:
                self._receive(offset, note, watch)
            finally:  # a closed connection may look like the end of an answer, too
                if watch.stalled:
                    raise _CutOff(f'the server has sent less than {_LEAST_BYTES} bytes in '
                                  f'{_STALL:g} seconds')

    def _receive(self, offset: int, note: dict[str, Any], watch: '_StallWatch') -> None:
        response = self._open(offset, note, watch)
        with response:
            length = response.headers.get('Content-Length')
            total = int(length) if length and length.isdigit() else None
            if response.status == 206:
                span = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)',
                                    response.headers.get('Content-Range', ''))
                if not span or int(span[1]) != offset or span[2] not in ('*', str(note['total'])):
                    self._discard()
                    raise OSError('the server sent a different part of the file than requested')
                total = note['total']
            else:  # the whole file: it has changed, or the server does not send parts
                offset = 0
                self._write_note(response.headers, total)
            with self.part.open('ab' if offset else 'wb') as file:
                received = offset + self._copy(response, file, offset, total, watch)
        if total is not None and received != total:
            raise _CutOff(f'the connection ended after {received} of {total} bytes')

    def _open(self, offset: int, note: dict[str, Any], watch: '_StallWatch') -> Any:
        redirects = _Redirects()
        opener = urllib.request.build_opener(redirects, *_watched_handlers(watch))
        headers = {'User-Agent': 'evit-mm', 'Accept-Encoding': 'identity'}
        if offset:
            headers.update({'Range': f'bytes={offset}-', 'If-Range': note['validator']})
        try:
            # As browsers do with spaces and letters that addresses may not contain.
            address = urllib.parse.quote(self.url, safe=string.punctuation)
            response = opener.open(urllib.request.Request(address, headers=headers),
                                 timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416 or not offset:
                raise
            self._discard()  # the file is now shorter than the part
            return self._open(0, {}, watch)
        linked = (response.headers.get('X-Linked-Etag') or redirects.linked_etag or '').strip('"')
        # The ETag of a large file is its SHA-256; that of a small one is git's.
        self.hub_sha256 = linked if re.fullmatch('[0-9a-f]{64}', linked) else None
        return response

    def _copy(self, response: Any, file: IO[bytes], offset: int, total: int | None,
              watch: '_StallWatch') -> int:
        """Write the response to ``file`` and return the number of bytes."""
        from tqdm import tqdm

        received = 0
        # Only the first process of a node shows a progress bar, and only on a terminal.
        hidden = True if int(os.environ.get('LOCAL_RANK', 0)) else None
        with tqdm(total=total, initial=offset, unit='B', unit_scale=True, desc=self.target.name,
                  disable=hidden) as bar:
            while True:
                try:
                    chunk = response.read1(_CHUNK)  # what has arrived, however little
                except (OSError, http.client.HTTPException) as error:
                    of = f' of {total}' if total is not None else ''
                    raise _CutOff(f'the connection ended after {offset + received}{of} bytes'
                                  ) from error
                if not chunk:
                    return received
                file.write(chunk)
                received += len(chunk)
                watch.received += len(chunk)
                bar.update(len(chunk))

    def _write_note(self, headers: Message, total: int | None) -> None:
        """Record how to ask the server whether the file is still the same, if it supports that."""
        self._discard()
        etag = headers.get('ETag', '')
        validator = etag if etag.startswith('"') else headers.get('Last-Modified')
        if validator and total is not None:
            self.note.write_text(json.dumps(
                {'url': self.url, 'validator': validator, 'total': total}))

    def _resumable(self) -> tuple[int, dict[str, Any]]:
        """Return the number of bytes received by an earlier connection, and the note on them."""
        try:
            note = json.loads(self.note.read_text())
            size = self.part.stat().st_size
            if note['url'] == self.url and note['validator'] and 0 < size < note['total']:
                return size, note
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


def _log(text: str) -> None:
    from mmengine.logging import print_log  # installs the loaders, which import this module

    print_log(text, logger='current')
