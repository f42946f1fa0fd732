"""Requests that are too long, too slow, broken off or of other sites reach no application."""

import asyncio
import errno
import os
import tempfile

import pytest

from evit_runtime import request_limits
from evit_runtime.errors import UserError
from evit_runtime.request_limits import limit_requests, only_files

FORM = (b'content-type', b'Multipart/form-data; boundary=x')


class Application:
    """Application that answers with the length of what it gets, and counts its calls."""

    def __init__(self, error=None):
        self.error, self.calls = error, 0

    async def __call__(self, scope, receive, send):
        self.calls += 1
        if self.error:
            raise self.error
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message['body'])
            more = message['more_body']
        assert (await receive())['type'] == 'http.disconnect'
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': str(size).encode()})


def answer(application, folder, chunks=(b'',), *, headers=(), wait=0.0, breaks_off=False):
    """Return the status and the text of the answer to a request."""
    sent, remaining = [], list(chunks)

    async def receive():
        await asyncio.sleep(wait)
        if not remaining:
            return {'type': 'http.disconnect'}
        return {'type': 'http.request', 'body': remaining.pop(0),
                'more_body': bool(remaining) or breaks_off}

    async def send(message):
        sent.append(message)

    async def run():
        limited = limit_requests(application, largest_upload=2**21, seconds=0.2, folder=folder)
        await limited({'type': 'http', 'method': 'POST', 'path': '/a\x1b[2J',
                       'headers': [(b'host', b'localhost:1'), *headers]}, receive, send)

    asyncio.run(run())
    return (sent[0]['status'], sent[1]['body'].decode()) if sent else None


@pytest.mark.parametrize('size', [0, 1, 2**16, 2**16 + 1, 2**20])
def test_a_request_is_handed_on_as_it_came(size, tmp_path):
    half = size // 2
    assert answer(Application(), tmp_path, [bytes(half), bytes(size - half)]) == (200, str(size))


def test_requests_that_are_too_long(tmp_path):
    application = Application()
    assert answer(application, tmp_path, [bytes(2**20), b'a']) == (
        413, 'the request has more than 1048576 bytes')
    assert answer(application, tmp_path, headers=[(b'content-length', b'1048577')])[0] == 413
    assert answer(application, tmp_path, headers=[(b'content-length', b'9' * 40)])[0] == 413
    assert answer(application, tmp_path, [bytes(2**20)] * 3 + [b'a'], headers=[FORM])[0] == 413
    assert not application.calls
    # An upload may have the size of a file, and what is around it.
    assert answer(application, tmp_path, [bytes(2**20)] * 3, headers=[FORM]) == (
        200, str(3 * 2**20))


def test_requests_that_are_slow_or_broken_off(tmp_path):
    application = Application()
    assert answer(application, tmp_path, [b'a'] * 10, wait=0.1) == (
        408, 'the request took longer than 0.2 seconds')
    assert answer(application, tmp_path, [bytes(10**5)], headers=[FORM], breaks_off=True) is None
    assert not application.calls and not os.listdir(tmp_path)


@pytest.mark.parametrize('origin, status', [
    (b'http://localhost:1', 200), (b'http://example.org', 403), (b'http://localhost:2', 403),
    (b'null', 403), (b'', 403)])
def test_requests_of_other_sites(origin, status, tmp_path):
    assert answer(Application(), tmp_path, headers=[(b'origin', origin)])[0] == status


def test_a_full_disk(tmp_path, monkeypatch):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, 'SpooledTemporaryFile', Full)
    assert answer(Application(), tmp_path, [b'a']) == (
        507, 'can\'t store the request: No space left on device')


def test_an_application_that_fails(tmp_path, capsys):
    assert answer(Application(KeyError('a\n\x1b[2J')), tmp_path) == (
        500, 'this request has no answer')
    printed = capsys.readouterr().err
    assert printed.startswith("note: POST '/a\\x1b[2J' has no answer: ") and 'KeyError' in printed
    assert printed.count('\n') == 1 and '\x1b' not in printed


def test_the_oldest_files_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(request_limits, '_LARGEST_FOLDER', 250)
    for number in range(4):
        path = tmp_path / str(number) / 'a.png'
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    answer(Application(), tmp_path)
    assert len(list(tmp_path.rglob('*.png'))) == 4
    answer(Application(), tmp_path, headers=[FORM])
    assert sorted(tmp_path.rglob('*.png')) == [tmp_path / '2/a.png', tmp_path / '3/a.png']


def test_an_address_is_not_a_file():
    async def store(path):
        return path

    assert asyncio.run(only_files(store)('/a/b.png')) == '/a/b.png'
    for address in ('http://example.org/a.png', 'HTTPS://example.org'):
        with pytest.raises(UserError, match='a file, not an address'):
            asyncio.run(only_files(store)(address))
