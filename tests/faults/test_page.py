"""The page's server survives bad requests and many at once, and answers the next one correctly."""

import html
import http.client
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import cv2
import exported_files
import numpy as np
import pytest
from faults.test_hostile_input import png

from evit_runtime import load_model
from evit_runtime import page as page_module
from evit_runtime.page import Page

pytest.importorskip('gradio')

BOUNDARY = 'multipart/form-data; boundary=edge'
JSON = 'application/json'
_sessions = itertools.count()


def picture(width, height, suffix='.png'):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def form(content, name='a.png', field='files'):
    return (f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
            ).encode() + content + b'\r\n--edge--\r\n'


class Client:
    """A browser's part of the page, over plain HTTP."""

    def __init__(self, address):
        self.port = int(re.search(r'127\.0\.0\.1:(\d+)/', address)[1])
        self.dependency = json.loads(self.ask('GET', '/config')[1])['dependencies'][0]

    def ask(self, method, path, body=None, content_type=None, **headers):
        """Send a request, and return the status and the body of the answer."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        if content_type:
            headers['Content-Type'] = content_type
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def raw(self, content):
        """Send bytes, and return the socket."""
        connection = socket.create_connection(('127.0.0.1', self.port), timeout=60)
        connection.sendall(content)
        return connection

    def connections(self):
        """Return how many connections the server holds in this process."""
        held = [os.readlink(f'/proc/self/fd/{name}') for name in os.listdir('/proc/self/fd')
                if os.path.lexists(f'/proc/self/fd/{name}')]
        with open('/proc/net/tcp') as table:
            entries = [line.split() for line in table]
        return sum(entry[1].endswith(f':{self.port:04X}') and f'socket:[{entry[9]}]' in held
                   and entry[3] != '0A' for entry in entries)

    def upload(self, content, name='a.png'):
        status, answer = self.ask('POST', '/gradio_api/upload', form(content, name), BOUNDARY)
        assert status == 200
        return json.loads(answer)[0]

    def run(self, path):
        """Let the page predict an uploaded file, and return what it shows; None after an error."""
        session = f's{next(_sessions)}'
        status, answer = self.ask('POST', '/gradio_api/queue/join', json.dumps(dict(
            data=[dict(path=path, meta=dict(_type='gradio.FileData')), 0.3], session_hash=session,
            fn_index=self.dependency['id'], trigger_id=self.dependency['targets'][0][0])), JSON)
        assert status == 200, answer
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=120)
        connection.request('GET', f'/gradio_api/queue/data?session_hash={session}')
        with connection.getresponse() as answer:
            for line in answer:
                message = json.loads(line[5:]) if line.startswith(b'data:') else {}
                if message.get('msg') == 'process_completed':
                    return message['output'].get('data')
        raise AssertionError('the stream of answers ended')

    def said(self, content, name='a.png'):
        """Predict a picture, and return the sentence about it."""
        return html.unescape(re.sub('<.*?>', '', self.run(self.upload(content, name))[3]))

    def check(self, width, height):
        """Predict a good picture, and assert that all of the answer is right."""
        *_, said, _, _, document = self.run(self.upload(picture(width, height), 'good.png'))
        assert f'>good.png, {width} × {height} pixels: dog 1<' in said
        status, content = self.ask('GET', '/gradio_api/file=' + document['value']['path'])
        [entry] = json.loads(content)['annotations']
        assert status == 200 and entry['bbox'] == [0, 0, width, height]


def bad_requests(client):
    """Return functions that send a bad request each, and assert that it is refused."""
    def refused(*arguments, **options):
        status, content = client.ask(*arguments, **options)
        assert status >= 400 and b'root:' not in content and b'Traceback' not in content

    def says(sentence, content, name='bad.png'):
        assert sentence in client.said(content, name)

    def not_http(content):
        with client.raw(content) as connection:
            answer = connection.recv(100)
        assert b' 400 ' in answer or not answer

    def too_long(path, kind, parts):
        # The page may answer and close before it has read all.
        head = (f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n'
                'Transfer-Encoding: chunked\r\n\r\n')
        with client.raw(head.encode()) as one, suppress(ConnectionError):
            for part in parts:
                one.sendall(b'%x\r\n' % len(part) + part + b'\r\n')
            one.sendall(b'0\r\n\r\n')
            assert b' 413 ' in one.recv(100)

    def announced(size):
        with client.raw(b'POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: '
                        + BOUNDARY.encode() + b'\r\nContent-Length: %d\r\n\r\n' % size) as one:
            assert b' 413 ' in one.recv(100)

    def fails(path):
        assert client.run(path) is None

    join, upload = '/gradio_api/queue/join', '/gradio_api/upload'
    good = picture(40, 30)
    return {
        'paths': [lambda path=path: refused('GET', path) for path in (
            '/nothing', '/gradio_api/nothing', '/static/../../../../etc/passwd',
            '/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd', '/gradio_api/file=/etc/passwd',
            '/gradio_api/file=../../../../etc/passwd', '/gradio_api/proxy=http://127.0.0.1:1/',
            '/gradio_api/queue/data', '/gradio_api/upload_progress?upload_id=1',
            '/gradio_api/stream/a/b/1/playlist.m3u8', '/' + 'a' * 5000)],
        'methods': [lambda method=method, path=path: refused(method, path) for method, path in (
            ('DELETE', '/'), ('PUT', upload), ('GET', join), ('PATCH', '/config'),
            ('POST', '/'), ('OPTIONS', upload), ('NONSENSE', '/'))],
        'broken JSON': [lambda body=body: refused('POST', join, body, JSON) for body in (
            b'', b'{', b'nonsense', b'\xff\xfe', b'[]', b'{}', b'[' * 100_000, b'{"data": 3}',
            b'{"data": [], "fn_index": 99, "session_hash": "a"}', b'{"data": [null, null]}')],
        'other calls': [lambda path=path: refused('POST', path, b'{"data": [1, 2]}', JSON)
                        for path in ('/gradio_api/run/_predict', '/gradio_api/call/nothing',
                                     '/gradio_api/api/0', '/gradio_api/component_server')],
        'broken multipart': [
            lambda body=body, kind=kind: refused('POST', upload, body, kind) for body, kind in (
                (form(good), None), (form(good), 'multipart/form-data'), (form(good), JSON),
                (b'--other\r\nnonsense', BOUNDARY), (b'nonsense', BOUNDARY),
                (form(good, name='a' * 20_000), BOUNDARY),
                (b'--edge\r\n\r\nno name\r\n--edge--\r\n', BOUNDARY))],
        'not images': [lambda body=body: says('can\'t read the image bad.png', body)
                       for body in (
            b'', b'nonsense', b'GIF89a', good[:20], b'\x89PNG\r\n\x1a\n', b'%PDF-1.4', bytes(5000),
            b'<svg xmlns="http://www.w3.org/2000/svg"/>')],
        'cut off': [lambda body=body: says('the image bad.png was cut off', body) for body in (
            good[:-20], good[:200], picture(40, 30, '.jpg')[:-20])],
        'too many pixels': [lambda: says('20000x20000 pixels, more than the limit',
                                         png(20_000, 20_000))],
        'over-long': [lambda: announced(10**9), lambda: announced(10**18),
                      lambda: too_long(join, JSON, [b'{"data": [' + b'0,' * 600_000 + b'0]}']),
                      lambda: too_long(upload, BOUNDARY, [bytes(2**20)] * 110)],
        'not uploaded': [lambda path=path: fails(path) for path in (
            '/etc/passwd', 'http://127.0.0.1:1/a.png', 'https://example.org/a.png', '../a.png')],
        'other sites': [
            lambda: refused('POST', upload, form(good), BOUNDARY, Origin='http://example.org'),
            lambda: refused('POST', upload, form(good), BOUNDARY, Origin='null'),
            lambda: refused('GET', '/', Host='example.org')],
        'not HTTP': [lambda content=content: not_http(content) for content in (
            b'nonsense\r\n\r\n', b'\x16\x03\x01' * 50, b'GET / HTTP/9.9\r\n\r\n',
            b'GET / HTTP/1.1\r\n' + b'A: b\r\n' * 20_000, b'POST / HTTP/1.1\r\n'
            b'Host: localhost\r\nContent-Length: many\r\n\r\n')],
    }


def half_open(client, count):
    """Return sockets that send nothing, half a header or half a body, or read no answer."""
    starts = [b'', b'GET / HT', b'POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n',
              b'POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\n'
              b'Content-Length: 100\r\n\r\n{"data"']
    return [client.raw(starts[number % len(starts)]) for number in range(count)]


def is_ended(connection, seconds):
    """Return whether a server ends a connection within some time."""
    connection.settimeout(seconds)
    try:
        while connection.recv(2**16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def memory(process):
    """Return the resident memory of a process in MB."""
    with open(f'/proc/{process.pid}/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


@pytest.fixture
def server(tmp_path):
    """The command `evit-run app` in a process that may open 256 files, and its address."""
    exported_files.write(tmp_path / 'model.onnx')
    with open(tmp_path / 'stderr', 'w') as stderr:
        process = subprocess.Popen(
            [sys.executable, '-m', 'evit_runtime', 'app', 'model.onnx', '--port', '0',
             '--no-browser'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(os.path.abspath, sys.path))},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    process.address = process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.faults
def test_the_command_survives(server, record_property):
    """200 bad requests, 300 connections that do nothing, and 50 good requests at once."""
    client = Client(server.address)
    client.check(40, 30)
    every = bad_requests(client)
    names = [name for name in every for _ in every[name]]
    requests = [request for name in every for request in every[name]]
    for request in requests:  # for the first time, which loads code
        request()
    before = memory(server)
    count = 0
    while count < 200:
        for name, request in zip(names, requests, strict=True):
            try:
                request()
            except AssertionError as error:
                raise AssertionError(f'{name}: {error}') from error
            count += 1
    record_property('a bad request to the page', count)
    record_property('a good request to the page, at once with others', 50)
    record_property('a connection to the page that does nothing', 300)
    client.check(41, 31)
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda width: client.check(width, 32), range(40, 90)))
    grown = memory(server) - before
    # Nothing on the same machine listens but on 127.0.0.1.
    listening = subprocess.run(['cat', f'/proc/{server.pid}/net/tcp'], capture_output=True,
                               text=True).stdout
    assert f'0100007F:{client.port:04X} 00000000:0000 0A' in listening
    assert f'00000000:{client.port:04X} 00000000:0000 0A' not in listening
    with ExitStack() as stack:
        for connection in half_open(client, 300):
            stack.enter_context(connection)
        time.sleep(2 * page_module._SECONDS_IDLE + 2)
        client.check(42, 33)
    assert server.poll() is None
    print(f'{count} bad requests of {len(every)} kinds; memory grew by {grown:.0f} MB')
    assert grown < 50
    server.send_signal(signal.SIGINT)
    assert server.wait(120) == 0


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client of a page that waits for a second."""
    monkeypatch.setattr(page_module, '_SECONDS_IDLE', 0.3)
    exported_files.write(tmp_path / 'model.onnx')
    with Page(load_model(tmp_path / 'model.onnx'), seconds=1, largest_upload=10**6) as page:
        yield Client(page.address)


def test_bad_and_many_requests(client):
    """The short form, in this process: two bad requests of each kind, and 10 at once."""
    for requests in bad_requests(client).values():
        for request in requests[-2:]:
            request()
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda width: client.check(width, 32), range(40, 50)))


def test_connections_that_do_nothing_are_ended(client):
    with ExitStack() as stack:
        for connection in half_open(client, 8):
            stack.enter_context(connection)
            assert is_ended(connection, 5)
        # A client that never reads: the answers fill what the system buffers for it.
        path = client.upload(bytes(900_000))
        reader = stack.enter_context(client.raw(50 * (
            f'GET /gradio_api/file={path} HTTP/1.1\r\nHost: localhost\r\n\r\n').encode()))
        assert reader.recv(1)  # the server has begun to answer
        end = time.monotonic() + 20
        while client.connections() and time.monotonic() < end:
            time.sleep(0.2)
        reader.settimeout(5)
        assert sum(map(len, iter(lambda: reader.recv(2**20), b''))) < 30_000_000
    client.check(40, 30)
