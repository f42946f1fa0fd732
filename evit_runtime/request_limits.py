"""Limits of what the server of a page takes: size, time, idle connections, and other sites."""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UserError, is_full_disk

__all__ = ['limit_requests', 'only_files', 'patient_for']

_LARGEST_MESSAGE = 2 ** 20  # bytes of a request that uploads nothing
_LARGEST_FOLDER = 2 ** 30  # bytes of all uploads and drawings
_UPLOADS = 4  # that are handed on at a time


def limit_requests(app: Callable[..., Any], *, largest_upload: int, seconds: float, folder: Path
                   ) -> Callable[..., Any]:
    """Return an application that gets requests of a limited size and time, from its own page alone.

    A request is handed on when all of it has arrived: gradio keeps what it has stored of an upload
    that breaks off.

    Args:
        app: The application.
        largest_upload: Bytes of the largest file.
        seconds: Time in which a request arrives.
        folder: Where requests, uploads and drawings are stored.
    """
    uploads = asyncio.Semaphore(_UPLOADS)  # gradio holds the fields of a form in memory

    async def with_limits(scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] != 'http':
            await app(scope, receive, send)
            return
        headers = dict(scope['headers'])
        # A form of another site is sent by the browser, which only hides the answer from it.
        origin = headers.get(b'origin')
        if origin is not None and origin.partition(b'://')[2] != headers.get(b'host'):
            await _refuse(send, 403, 'this page takes no requests of other sites')
            return
        is_upload = headers.get(b'content-type', b'').lower().startswith(b'multipart/')
        limit = largest_upload + _LARGEST_MESSAGE if is_upload else _LARGEST_MESSAGE
        with tempfile.SpooledTemporaryFile(2 ** 16, dir=str(folder)) as body:
            try:
                announced = headers.get(b'content-length', b'0')
                complete = len(announced) < 20 and int(announced) <= limit and \
                    await asyncio.wait_for(_store(receive, body, limit), seconds)
            except asyncio.TimeoutError:
                await _refuse(send, 408, f'the request took longer than {seconds:g} seconds')
            except ConnectionError:
                return
            except OSError as error:
                if not is_full_disk(error):
                    raise
                await _refuse(send, 507, f'can\'t store the request: {error.strerror}')
            else:
                if not complete:
                    await _refuse(send, 413, f'the request has more than {limit} bytes')
                elif is_upload:
                    async with uploads:
                        _remove_oldest(folder, _LARGEST_FOLDER)
                        await _answer(app, scope, _again(body, receive), send)
                else:
                    await _answer(app, scope, _again(body, receive), send)

    return with_limits


async def _answer(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """Let an application answer; what it makes no answer to is reported in a sentence."""
    has_begun = False

    async def send_and_note(message: Any) -> None:
        nonlocal has_begun
        has_begun = True
        await send(message)

    try:
        await app(scope, receive, send_and_note)
    except Exception as error:  # gradio's own types, KeyError among them
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        # As a literal, in which nothing controls the terminal.
        print(f'note: {scope["method"]} {scope["path"][:100]!r} has no answer: {reason!r}',
              file=sys.stderr)
        if not has_begun:
            await _refuse(send, 500, 'this request has no answer')


async def _store(receive: Any, body: Any, limit: int) -> bool:
    """Store the body of a request, and return whether it keeps to the limit of bytes.

    Raises:
        ConnectionError: If the connection ends before.
        OSError: If it can't be stored.
    """
    size, more = 0, True
    while more:
        message = await receive()
        if message['type'] != 'http.request':
            raise ConnectionError
        content = message.get('body', b'')
        size += len(content)
        if size > limit:
            return False
        body.write(content)
        more = message.get('more_body', False)
    body.flush()
    body.seek(0)
    return True


def _again(body: Any, receive: Any) -> Any:
    """Return a function that gives an application a body which has been received."""
    more = True

    async def receive_again() -> Any:
        nonlocal more
        if not more:
            return await receive()  # that the connection ends
        content = body.read(2 ** 16)
        more = len(content) == 2 ** 16
        return {'type': 'http.request', 'body': content, 'more_body': more}

    return receive_again


async def _refuse(send: Any, status: int, sentence: str) -> None:
    """Answer a request with a status and a sentence, and end the connection."""
    await send({'type': 'http.response.start', 'status': status, 'headers': [
        (b'content-type', b'text/plain; charset=utf-8'), (b'connection', b'close')]})
    await send({'type': 'http.response.body', 'body': sentence.encode()})


def only_files(store: Callable[..., Any]) -> Callable[..., Any]:
    """Return gradio's function that stores an upload, without its downloads.

    A request can name an address in place of a file.
    """
    async def store_file(path: Any) -> Any:
        if '://' in str(path):
            raise UserError('an upload is a file, not an address')
        return await store(path)

    return store_file


def _remove_oldest(folder: Path, limit: int) -> None:
    """Remove the oldest files below a folder until the others keep to a limit of bytes."""
    files = []
    for path in folder.rglob('*'):
        with suppress(OSError):  # removed in between
            status = path.stat()
            if path.is_file():
                files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


def patient_for(seconds: float, protocol: Any) -> Any:
    """Return a class of uvicorn's protocols that ends connections which do nothing.

    Otherwise each of them would keep a file descriptor for ever, of which there are few.

    Args:
        seconds: After this time, or twice as much, a connection ends that neither sends a whole
            request nor reads its answer.
        protocol: Uvicorn's class.
    """
    class Impatient(protocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._seen: Any = None
            self._timer = self.loop.call_later(seconds, self._end_if_idle)

        def connection_lost(self, error: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(error)

        def _end_if_idle(self) -> None:
            waiting = self.transport.get_write_buffer_size()
            is_answered = self.cycle is None or self.cycle.response_complete
            if self._seen == (self.cycle, waiting) and (is_answered or waiting):
                self.transport.abort()  # without waiting for a client that reads nothing
            else:
                self._seen = self.cycle, waiting
                self._timer = self.loop.call_later(seconds, self._end_if_idle)

    return Impatient
