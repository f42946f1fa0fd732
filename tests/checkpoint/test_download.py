"""Downloads are resumed, verified, done once, and never incomplete in the cache."""

import contextlib
import gzip
import hashlib
import http.server
import json
import multiprocessing
import re
import threading
import time

import pytest
import torch
from safetensors.torch import save

from evit_mm.checkpoint import download as module
from evit_mm.checkpoint.download import cache_path, download
from evit_mm.checkpoint.safe_load import download_checkpoint
from evit_mm.errors import CheckpointError

CONTENT = bytes(range(256)) * 400  # 102400 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A server with one file at every address, and the faults that its attributes select."""

    content = CONTENT
    etag: str | None = '"one"'
    modified: str | None = None
    ranges = True
    cuts: tuple[int, ...] = ()  # bytes after which each of the first responses ends
    announced: int | None = None  # a wrong Content-Length
    shift = 0  # bytes between the requested part and the one that is sent
    delay = 0.0
    redirect: dict[str, str] | None = None

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.requests = []

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/a.bin'

    def handle_error(self, *_):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        if server.redirect and '/stored' not in self.path:
            self.send_response(302)
            for name, value in server.redirect.items():
                self.send_header(name, value)
            self.end_headers()
            return
        server.requests.append(self.headers.get('Range'))
        time.sleep(server.delay)
        if 'gone' in self.path:
            self.send_error(404)
            return
        body, status, headers = server.content, 200, {}
        start = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
        validators = (server.etag, server.modified)
        if start and server.ranges and self.headers.get('If-Range') in validators:
            first = int(start[1]) + server.shift
            if first >= len(body):
                self.send_error(416)
                return
            headers['Content-Range'] = f'bytes {first}-{len(body) - 1}/{len(body)}'
            body, status = body[first:], 206
        self.send_response(status)
        headers['Content-Length'] = str(
            len(body) if server.announced is None else server.announced)
        headers.update({name: value for name, value in (
            ('ETag', server.etag), ('Last-Modified', server.modified)) if value})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        count = len(server.requests)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:server.cuts[count - 1]] if count <= len(server.cuts) else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(module, '_PAUSE', 0.0)
    return tmp_path / 'hub' / 'checkpoints'


@pytest.fixture
def server(cache):
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def assert_fails(url, *fragments, **options):
    with pytest.raises(CheckpointError) as error:
        download(url, **options)
    text = str(error.value)
    assert all(fragment in text for fragment in (f'could not download {url}', *fragments)), text
    assert 'save the file as' in text and '\n' not in text


def files_in(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix not in ('.lock', '.origin'))


class Trickle(Handler):
    """A server that never stops sending a little: another header, a byte, or "go on"."""

    def do_GET(self):
        self.server.requests.append(None)
        stop = time.monotonic() + 20
        send = {'body.pth': b'x', 'headers.pth': b'X-More: 1\r\n',
                'continue.pth': b'HTTP/1.1 100 Continue\r\n\r\n'}[self.path.rpartition('/')[2]]
        with contextlib.suppress(OSError):
            if 'continue' not in self.path:
                self.wfile.write(b'HTTP/1.1 200 OK\r\n')
            if 'body' in self.path:
                self.wfile.write(b'Content-Length: 100000\r\n\r\n')
            while time.monotonic() < stop:
                self.wfile.write(send)
                time.sleep(0.05)


@pytest.mark.parametrize('name', ['body', 'headers', 'continue'])
def test_a_transfer_without_progress_ends(name, server, cache, monkeypatch):
    server.RequestHandlerClass = Trickle
    monkeypatch.setattr(module, '_STALL', 0.5)
    monkeypatch.setattr(module, '_ATTEMPTS', 2)
    before = time.monotonic()
    assert_fails(f'{server.url}/{name}.pth', 'the server has sent less than 16384 bytes in 0.5 ')
    assert time.monotonic() - before < 10
    assert files_in(cache) == []


def test_a_slow_transfer_goes_on(server, cache, monkeypatch):
    class Slow(Handler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', str(len(CONTENT)))
            self.end_headers()
            for start in range(0, len(CONTENT), 10240):
                self.wfile.write(CONTENT[start:start + 10240])
                time.sleep(0.1)

    server.RequestHandlerClass = Slow
    monkeypatch.setattr(module, '_STALL', 0.4)
    assert download(f'{server.url}/slow.pth').read_bytes() == CONTENT


def test_the_answer_of_a_server_cannot_control_the_terminal(server, cache):
    class Rude(Handler):
        def do_GET(self):
            self.wfile.write(b'HTTP/1.1 404 \x1b[2J\x1b]0;title\x07gone\r\n\r\n')

    server.RequestHandlerClass = Rude
    with pytest.raises(CheckpointError) as caught:
        download(f'{server.url}/weights.pth')
    assert str(caught.value).isprintable() and r'\x1b[2J' in str(caught.value)


def test_http_never_redirects_to_another_scheme(server, cache):
    server.redirect = {'Location': 'ftp://127.0.0.1/stored.pth'}
    assert_fails(f'{server.url}/weights.pth', 'redirected to ftp://127.0.0.1/stored.pth, which is '
                                              'not an http or https address')


@pytest.mark.parametrize('validator', [
    {'etag': '"one"'}, {'etag': None, 'modified': 'Wed, 01 Jan 2025 00:00:00 GMT'},
    {'etag': 'W/"weak"', 'modified': 'Wed, 01 Jan 2025 00:00:00 GMT'}])
def test_interrupted_download_is_continued(server, cache, validator):
    for name, value in validator.items():
        setattr(server, name, value)
    server.cuts = (50000, 20000)
    path = download(server.url)
    assert path == cache / 'a.bin' and path.read_bytes() == CONTENT
    assert server.requests == [None, 'bytes=50000-', 'bytes=70000-']
    assert files_in(cache) == ['a.bin']
    assert download(server.url) == path and len(server.requests) == 3  # from the cache


def test_next_call_continues_a_download(server, cache):
    server.cuts = (50000, 0)
    assert_fails(server.url, 'the connection ended after 50000 of 102400 bytes')
    assert files_in(cache) == ['a.bin.part', 'a.bin.part.json']
    assert download(server.url).read_bytes() == CONTENT
    assert server.requests == [None, 'bytes=50000-', 'bytes=50000-']
    assert files_in(cache) == ['a.bin']


def test_changed_file_is_downloaded_again(server, cache):
    server.cuts = (50000, 0)
    assert_fails(server.url, 'ended after 50000')
    server.etag, server.content = '"two"', CONTENT[::-1]
    assert download(server.url).read_bytes() == CONTENT[::-1]


def test_server_without_ranges(server, cache):
    server.ranges = False
    server.cuts = (50000,)
    assert download(server.url).read_bytes() == CONTENT
    assert server.requests == [None, 'bytes=50000-']


def test_server_without_validators(server, cache):
    """Without an ETag or a date, the rest may belong to another version of the file."""
    server.etag = None
    server.cuts = (50000,)
    assert_fails(server.url, 'the connection ended after 50000 of 102400 bytes')
    assert files_in(cache) == []
    assert download(server.url).read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_part_longer_than_the_file(server, cache):
    server.cuts = (50000, 0)
    assert_fails(server.url, 'ended after 50000')
    server.content = b'short'
    assert download(server.url).read_bytes() == b'short'
    assert server.requests[-2:] == ['bytes=50000-', None]  # refused with 416, then requested again


def test_server_that_sends_the_wrong_part(server, cache):
    server.cuts = (50000,)
    server.shift = 7
    assert_fails(server.url, 'a different part of the file')
    assert files_in(cache) == []


def test_parts_of_other_addresses_and_damaged_notes_are_ignored(server, cache):
    cache.mkdir(parents=True)
    (cache / 'a.bin.part').write_bytes(b'x' * 50)
    for note in (json.dumps(dict(url='http://other/a.bin', validator='"one"', total=102400)),
                 '{"url": ', '[]', '{}'):
        (cache / 'a.bin.part.json').write_text(note)
        assert download(server.url).read_bytes() == CONTENT
        (cache / 'a.bin').unlink()
        (cache / 'a.bin.part').write_bytes(b'x' * 50)
    assert set(server.requests) == {None}


@pytest.mark.parametrize('announced,fragment', [
    (len(CONTENT) + 1000, 'the connection ended after 102400 of 103400 bytes'),
    (1000, 'the download is cut off before its end')])
def test_wrong_length(server, cache, announced, fragment):
    state = save({'w': torch.zeros(25000)})
    server.content = state + bytes(len(CONTENT) - len(state))
    server.announced = announced
    with pytest.raises(CheckpointError) as error:
        download_checkpoint(server.url)
    assert fragment in str(error.value)
    assert 'a.bin' not in files_in(cache)
    server.announced, server.content = None, state
    server.etag = '"right"'
    assert download_checkpoint(server.url).read_bytes() == state


@pytest.mark.parametrize('content,fragment', [
    (b'', 'the download is empty'),
    (b'<html>sign in to this network</html>', 'the download is text'),
    (b'PK\3\4' + bytes(500), 'the download is cut off'),
    (gzip.compress(CONTENT), 'the download is compressed with gzip'),
    (CONTENT, 'the download is damaged or not a checkpoint')])
def test_other_files_do_not_enter_the_cache(server, cache, content, fragment):
    server.content = content
    with pytest.raises(CheckpointError, match=fragment):
        download_checkpoint(server.url)
    assert files_in(cache) == []


def test_checksums(server, cache):
    """From the caller, the file name, or the response of the hub."""
    named = server.url.replace('a.bin', f'a-{SHA256[:10]}.bin')
    assert download(named).read_bytes() == CONTENT
    assert download(server.url, sha256=SHA256.upper()).is_file()
    (cache / 'a.bin').unlink()
    assert_fails(server.url, 'invalid hash', sha256='0' * 64)
    assert_fails(server.url.replace('a.bin', 'a-0123456789.bin'), 'invalid hash', '0123456789')
    server.redirect = {'Location': '/stored', 'X-Linked-Etag': f'"{"0" * 64}"'}
    assert_fails(server.url, 'invalid hash')
    assert files_in(cache) == [f'a-{SHA256[:10]}.bin']
    server.redirect = {'Location': '/stored', 'X-Linked-Etag': f'"{SHA256}"'}
    server.cuts = (0,) * len(server.requests) + (40000,)
    assert download(server.url).read_bytes() == CONTENT
    assert server.requests[-1] == 'bytes=40000-'  # after the redirection


def test_invalid_addresses(server, cache):
    assert_fails(server.url.replace('a.bin', 'gone.bin'), 'Not Found')
    assert_fails('http://127.0.0.1:9/a.bin', 'refused')
    server.redirect = {'Location': 'file:///etc/hostname'}
    assert_fails(server.url, 'is not allowed')
    for url in ('file:///etc/hostname', 'ftp://127.0.0.1/a.bin', 'a.bin'):
        with pytest.raises(CheckpointError, match='not an http or https address'):
            download(url)
    for url in (server.url.replace('a.bin', name) for name in ('', '..', 'x%00', '%1b[2J')):
        with pytest.raises(CheckpointError, match='does not name a file'):
            download(url)
    assert files_in(cache) == []


def test_https_never_redirects_to_http():
    request = module.urllib.request.Request('https://example.org/a.bin')
    with pytest.raises(OSError, match='not secure'):
        module._Redirects().redirect_request(request, None, 302, '', {}, 'http://example.org/b')


def test_cache_paths_of_hub_files_differ(cache):
    """Most of them are called model.safetensors."""
    names = [cache_path(f'https://huggingface.co/timm/{name}/resolve/main/model.safetensors').name
             for name in ('efficientvit_m0.r224_in1k', 'efficientvit_m1.r224_in1k')]
    assert names[0] == 'timm--efficientvit_m0.r224_in1k--main--model.safetensors' != names[1]


def test_files_with_the_same_name_are_distinguished(server, cache):
    """Every training run has an epoch_12.pth, and some servers have one address for all files."""
    host = f'http://127.0.0.1:{server.server_port}'
    paths = {}
    for number, place in enumerate(('/one/a.pth', '/two/a.pth', '/get?id=1', '/get?id=2')):
        server.content = CONTENT[number:]
        paths[place] = download(host + place)
        assert paths[place].read_bytes() == CONTENT[number:]
    assert len(set(paths.values())) == len(paths)
    assert paths['/one/a.pth'] == cache / 'a.pth'
    assert re.fullmatch(r'[0-9a-f]{12}--a\.pth', paths['/two/a.pth'].name)
    count = len(server.requests)
    for place, path in paths.items():
        assert download(host + place) == path
    assert download(f'{host}/two/a.pth?signature=new') == paths['/two/a.pth']
    (cache / 'a.pth').unlink()
    (cache / 'a.pth.origin').unlink()
    (cache / 'a.pth').write_bytes(b'put there by hand')
    assert download(f'{host}/two/a.pth').read_bytes() == b'put there by hand'
    assert len(server.requests) == count


@pytest.mark.parametrize('etag,left', [(None, []), ('"one"', ['a.bin.part', 'a.bin.part.json'])])
@pytest.mark.parametrize('failure', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_full_disk_and_interruption(server, cache, monkeypatch, etag, left, failure):
    def fail(_, answer, file, *__):
        file.write(answer.read(1000))
        raise failure

    server.etag = etag
    with monkeypatch.context() as patch:
        patch.setattr(module._Download, '_copy', fail)
        with pytest.raises((CheckpointError, KeyboardInterrupt), match='No space|^$'):
            download(server.url)
    assert files_in(cache) == left
    assert download(server.url).read_bytes() == CONTENT
    assert server.requests[-1] == ('bytes=1000-' if left else None)


def test_spaces_and_non_ascii_letters(server, cache):
    assert download(server.url.replace('a.bin', 'ü x%20y.bin')) == cache / 'ü x y.bin'


def test_date_in_a_name_is_not_a_checksum(server):
    for name in ('run-20240229.pth', 'run-20241231.pth'):
        assert download(server.url.replace('a.bin', name)).read_bytes() == CONTENT
    assert_fails(server.url.replace('a.bin', 'run-20249931.pth'), 'invalid hash')


@pytest.fixture
def other_process(server, cache):
    """Yield a process that has just started to download the file."""
    server.delay = 2.0
    # A copy of this process, which has imported everything already.
    process = multiprocessing.get_context('fork').Process(target=download, args=(server.url,))
    process.start()
    while not server.requests:
        assert process.is_alive()
        time.sleep(0.02)
    yield process
    process.kill()
    process.join(timeout=60)


def test_two_processes_download_once(server, cache, other_process):
    assert download(server.url).read_bytes() == CONTENT
    other_process.join(timeout=60)
    assert other_process.exitcode == 0
    assert server.requests == [None]


def test_killed_process_does_not_block_others(server, cache, other_process):
    other_process.kill()
    other_process.join(timeout=60)
    assert (cache / 'a.bin.lock').exists()
    server.delay = 0.0
    assert download(server.url).read_bytes() == CONTENT
