"""Checkpoints load without running code, and every damage is one sentence."""

import gzip
import http.server
import json
import pickle
import shutil
import threading
import zipfile
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors.torch import save_file

from evit_mm.checkpoint.safe_load import load_checkpoint_file, load_checkpoint_url
from evit_mm.errors import CheckpointError


class Hostile:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.fixture
def hostile(tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'meta': Hostile(tmp_path / 'owned')},
               tmp_path / 'hostile.pth')
    return tmp_path / 'hostile.pth'


def test_training_checkpoint_comes_back(tmp_path):
    hub = MessageHub.get_instance('training')
    for value in (1.0, 2.0, 3.0):
        hub.update_scalar('train/loss', value)
        hub.update_scalar('train/numpy', np.float32(value))
    hub.update_info('array', np.arange(3))
    saved = dict(
        state_dict=OrderedDict(w=torch.arange(3.0)), message_hub=hub.state_dict(),
        meta=dict(epoch=1, iter=3, seed=np.int64(7), dataset_meta=dict(
            classes=('a', 'b'), palette=[(1, 2, 3)], flag=np.bool_(True))),
        optimizer=dict(state={0: dict(step=torch.tensor(3.0))}, param_groups=[dict(lr=0.1)]),
        param_schedulers=[dict(last_step=3, _global_step=4)])
    torch.save(saved, tmp_path / 'epoch_1.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'epoch_1.pth'), map_location='cpu')
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer) and history.mean() == 2.0
    assert loaded['meta']['seed'] == 7 and loaded['optimizer'] == saved['optimizer']
    assert torch.equal(loaded['state_dict']['w'], torch.arange(3.0))
    restored = MessageHub.get_instance('restored')
    restored.load_state_dict(loaded['message_hub'])
    assert restored.get_scalar('train/loss').current() == 3.0


@pytest.mark.parametrize('override', [None, '1'])
def test_code_is_refused_everywhere(hostile, override, monkeypatch):
    if override:  # the switch that stock answers recommend
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', override)
    model = torch.nn.Linear(1, 1)
    for attempt in (lambda: load_checkpoint_file(hostile),
                    lambda: CheckpointLoader.load_checkpoint(str(hostile)),
                    lambda: load_checkpoint(model, str(hostile))):
        with pytest.raises(CheckpointError, match='hostile.pth is refused.*run code.*open'):
            attempt()
    assert not (hostile.parent / 'owned').exists()


@pytest.mark.parametrize('name', ['register_statistics', '__init__'])
def test_history_buffers_open_no_door(tmp_path, name):
    """Only the four statistics can be reached through a HistoryBuffer."""
    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, name)

    torch.save({'x': Reach()}, tmp_path / 'reach.pth')
    with pytest.raises(CheckpointError, match='refused.*getattr'):
        load_checkpoint_file(tmp_path / 'reach.pth')


class Bent:
    """Pickles as a type of numpy with a state of the file's choice."""

    def __init__(self, code, *state):
        self.code, self.state = code, (3, '|', *state)

    def __reduce__(self):
        return np.dtype, (self.code, False, True), self.state


class Unbuilt:
    """Pickles as a type of numpy."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return np.dtype, (self.code,)


class Array:
    """Pickles as an array of eight bytes."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return (np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b'b'),
                (1, (1,), self.kind, False, b'AAAAAAAA'))


class View:
    """Pickles as an array over the memory of another."""

    def __reduce__(self):
        return np.ndarray, ((1,), 'f8', np.zeros(1))


OBJECT_FIELD = (('a',), {'a': (Unbuilt('O'), 0)})


@pytest.mark.parametrize('content', [
    Array(Unbuilt('O')), Array(Bent('V8', None, *OBJECT_FIELD, 8, 1, 0)),
    Array(Bent('V8', (Unbuilt('O'), (1,)), None, None, 8, 1, 0)),
    Array(Bent('f8', None, *OBJECT_FIELD, 8, 8, 0)), Array(Bent('U2', None, None, None, 8, 4, 1)),
    Unbuilt([('a', 'O')]), Unbuilt('>f8'), Unbuilt('M8[s]')])
def test_types_of_numpy_other_than_numbers_are_refused(tmp_path, content):
    """With them numpy would take bytes of the file for addresses of objects."""
    torch.save({'x': content}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='refused.*numpy.dtype'):
        load_checkpoint_file(tmp_path / 'a.pth')


def test_arrays_of_numpy_are_what_they_seem(tmp_path):
    # The flag says that the numbers are objects; numpy's own type does not take it.
    torch.save({'x': Array(Bent('f8', None, None, None, -1, -1, 1)), 'y': View()},
               tmp_path / 'a.pth')
    loaded = load_checkpoint_file(tmp_path / 'a.pth')
    assert loaded['x'].dtype == np.float64 and not loaded['x'].dtype.hasobject
    assert loaded['x'].tobytes() == b'AAAAAAAA'
    assert loaded['y'].base is None and loaded['y'].size == 0
    saved = {code: np.arange(4).astype(code).reshape(2, 2) for code in 'bBhHiIqQefdFD?'}
    saved |= {'scalar': np.float32(2.5), 'fortran': np.asfortranarray(np.arange(6).reshape(2, 3))}
    torch.save(saved, tmp_path / 'b.pth')
    loaded = load_checkpoint_file(tmp_path / 'b.pth')
    for name, value in saved.items():
        assert loaded[name].dtype == value.dtype and np.array_equal(loaded[name], value), name


def test_code_in_the_config_of_a_checkpoint_is_not_kept(tmp_path):
    # mmengine's Runner.resume executes meta['config'] as Python.
    torch.save({'state_dict': {}, 'meta': {'config': 'import os', 'cfg': 'x = 1'}},
               tmp_path / 'a.pth')
    assert load_checkpoint_file(tmp_path / 'a.pth')['meta'] == {'cfg': 'x = 1'}


def test_damaged_files(tmp_path):
    torch.save({'w': torch.randn(1000)}, tmp_path / 'good.pth')
    whole = (tmp_path / 'good.pth').read_bytes()
    with zipfile.ZipFile(tmp_path / 'other.pth', 'w') as archive:
        archive.writestr('readme', 'x')
    for name, content, fragment in (
        ('list.pth', whole.replace(b'PK\1\2', b'PK\1\3'), 'it is damaged in its list of contents'),
        ('names.pth', whole.replace(b'good/data.pkl', b'good/data\xff\xff\xff\xff').replace(
            b'PK\1\2\0\0\0\0\0\0', b'PK\1\2\0\0\0\0\0\x08'), 'it is damaged'),
        ('empty.pth', b'', 'it is empty'),
        ('cut.pth', whole[:len(whole) // 2], 'cut off'),
        ('head.pth', whole[:10], 'cut off'),
        ('page.pth', b'<!doctype html><html>404</html>', 'it is text'),
        ('noise.pth', bytes(range(128, 256)) * 4, 'it is damaged or no checkpoint of torch'),
        ('other', bytes(range(1, 256)), 'it is damaged or no checkpoint'),
        ('packed.pth.gz', gzip.compress(whole), 'it is packed by gzip'),
        ('whole.safetensors', whole, 'it is a file of torch.save (.pth) under the name'),
        ('pickle.pth', pickle.dumps({'a': 1})[:-3], 'read as a checkpoint'),
        ('other.pth', None, 'read as a checkpoint'),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint_file(path)
        text = str(error.value)
        assert str(path) in text and fragment in text and '\n' not in text, (name, text)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match='no such checkpoint'):
        load_checkpoint_file(tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='is not a file'):
        load_checkpoint_file(tmp_path)


@pytest.mark.parametrize('kept', range(2, 1500, 97))
def test_files_of_the_older_format_cut_anywhere(tmp_path, kept):
    torch.save({'w': torch.randn(300)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    (tmp_path / 'old.pth').write_bytes((tmp_path / 'old.pth').read_bytes()[:kept])
    with pytest.raises(CheckpointError, match='old.pth'):
        load_checkpoint_file(tmp_path / 'old.pth')


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / 'a.pth').touch()

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('pathlib.Path.open', refuse)  # a test may run as root, who may read all
    with pytest.raises(CheckpointError, match='a.pth can.t be opened: its permissions'):
        load_checkpoint_file(tmp_path / 'a.pth')


def test_names_that_are_none():
    for name in ('x' * 300, '~nosuchuser/x.pth', 'a\0b'):
        with pytest.raises(CheckpointError):
            load_checkpoint_file(name)


def test_other_schemes_run_no_code_either(hostile, monkeypatch):
    """open-mmlab:// may name a local file, which mmengine hands to torch.load itself."""
    from mmengine.runner import checkpoint as mmengine_checkpoint

    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(mmengine_checkpoint, 'get_external_models',
                        lambda: {'evil': hostile.name})
    monkeypatch.setattr(mmengine_checkpoint, '_get_mmengine_home', lambda: str(hostile.parent))
    with pytest.raises(CheckpointError, match='open-mmlab://evil can.t be loaded'):
        CheckpointLoader.load_checkpoint('open-mmlab://evil')
    assert not (hostile.parent / 'owned').exists()
    for name in ('torchvision://no_such_model', 'open-mmlab://no_such_model', 's3://bucket/a.pth'):
        with pytest.raises(CheckpointError):
            CheckpointLoader.load_checkpoint(name)


class _Handler(http.server.BaseHTTPRequestHandler):
    files: dict = {}
    requests: list = []
    cut = False  # end the connection halfway

    def do_HEAD(self):
        self.send_response(200 if self.path in self.files else 404)
        self.send_header('Content-Length', str(len(self.files.get(self.path, b''))))
        self.end_headers()

    def do_GET(self):
        self.requests.append(self.path)
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:len(content) // 2] if self.cut else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(_Handler, 'files', {})
    monkeypatch.setattr(_Handler, 'requests', [])
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_downloads_once_and_safely(server, tmp_path, hostile):
    torch.save({'w': torch.ones(2)}, tmp_path / 'good.pth')
    _Handler.files = {'/good.pth': (tmp_path / 'good.pth').read_bytes(),
                      '/hostile.pth': hostile.read_bytes()}
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(f'{server}/good.pth')
        assert torch.equal(loaded['w'], torch.ones(2))
    assert _Handler.requests == ['/good.pth']
    with pytest.raises(CheckpointError, match='refused'):
        load_checkpoint_url(f'{server}/hostile.pth')
    assert not (tmp_path / 'owned').exists()


def test_downloads_at_once_fetch_once(server, tmp_path):
    torch.save({'w': torch.ones(2)}, tmp_path / 'good.pth')
    _Handler.files = {'/good.pth': (tmp_path / 'good.pth').read_bytes()}
    threads = [threading.Thread(target=load_checkpoint_url, args=(f'{server}/good.pth',))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _Handler.requests == ['/good.pth']


def test_failed_downloads_leave_nothing(server, tmp_path):
    _Handler.files = {'/model-0123456789.pth': b'not what the name promises'}
    for url, fragment in ((f'{server}/none.pth', 'Not Found'),
                          (f'{server}/model-0123456789.pth', 'invalid hash'),
                          ('http://127.0.0.1:9/x.pth', 'refused')):
        with pytest.raises(CheckpointError) as error:
            load_checkpoint_url(url)
        assert url in str(error.value) and fragment in str(error.value)
    assert [path for path in (tmp_path / 'hub').rglob('*') if path.suffix == '.pth'] == []


def test_a_connection_that_ends_early_is_no_download(server, tmp_path, monkeypatch):
    torch.save({'w': torch.ones(20000)}, tmp_path / 'good.pth')
    _Handler.files = {'/good.pth': (tmp_path / 'good.pth').read_bytes()}
    monkeypatch.setattr(_Handler, 'cut', True)
    with pytest.raises(CheckpointError, match='could not download'):
        load_checkpoint_url(f'{server}/good.pth')
    assert [path.suffix for path in (tmp_path / 'hub').rglob('*') if path.is_file()] == ['.lock']
    monkeypatch.setattr(_Handler, 'cut', False)
    assert torch.equal(load_checkpoint_url(f'{server}/good.pth')['w'], torch.ones(20000))


@pytest.mark.parametrize('url', ['http://127.0.0.1:abc/x.pth', 'http://127.0.0.1/', 'http://[/x.pth'])
def test_malformed_addresses(url):
    with pytest.raises(CheckpointError):
        load_checkpoint_url(url)


def test_safetensors_load_wherever_a_checkpoint_does(tmp_path, server):
    state = {'w': torch.arange(6.0).view(2, 3), 'n': torch.tensor(3), 'h': torch.ones(2).half()}
    save_file(state, tmp_path / 'a.safetensors', metadata={
        'format': 'pt', 'dataset_meta': '{"classes": ["a", "b"]}', 'config': 'import os'})
    shutil.copy(tmp_path / 'a.safetensors', tmp_path / 'renamed.pth')
    _Handler.files = {'/a.safetensors': (tmp_path / 'a.safetensors').read_bytes()}
    for source in (str(tmp_path / 'a.safetensors'), str(tmp_path / 'renamed.pth'),
                   f'{server}/a.safetensors'):
        loaded = CheckpointLoader.load_checkpoint(source, map_location='cpu')
        assert loaded['meta'] == {'format': 'pt', 'dataset_meta': {'classes': ['a', 'b']}}
        assert loaded['state_dict'].keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(loaded['state_dict'][key], value)
    for place in ('cuda:0', torch.device('cpu'), None, lambda storage, _: storage):
        load_checkpoint_file(tmp_path / 'a.safetensors', place)


def safetensors(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + data


@pytest.mark.parametrize('name,content,fragment', [
    ('empty', b'', 'it is empty'),
    ('text', b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'it is text'),
    ('page', b'<!doctype html>', 'it is text'),
    ('short', b'\x10', 'it is damaged or no safetensors file'),
    ('noise', bytes(range(128, 256)), 'it is damaged or no safetensors file'),
    ('nested', safetensors(b'{"w": ' + b'[' * 100000), 'it is damaged in its header'),
    ('longer', safetensors({'w': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}}, b'1234'),
     '12 bytes are missing that its header names'),
    ('shape', safetensors({'w': {'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 16]}},
                          bytes(16)), 'it is damaged ('),
    ('overlap', safetensors({'w': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]},
                             'v': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}},
                            bytes(16)), 'it is damaged ('),
    ('offsets', safetensors({'w': {'dtype': 'F32', 'shape': [4]}}, bytes(16)),
     'it is damaged in its header'),
    ('huge', (1 << 62).to_bytes(8, 'little') + b'{"w": 1}', 'its header lies about its length'),
    ('words', safetensors(b'{"w": not json'), 'it is damaged in its header'),
    ('dtype', safetensors({'w': {'dtype': 'X9', 'shape': [4], 'data_offsets': [0, 16]}}, bytes(16)),
     'it is damaged ('),
])
def test_damaged_safetensors(tmp_path, name, content, fragment):
    path = tmp_path / f'{name}.safetensors'
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        CheckpointLoader.load_checkpoint(str(path))
    text = str(error.value)
    assert str(path) in text and fragment in text and '\n' not in text, text


@pytest.mark.parametrize('kept', [1, 7, 9, 60, 500, 4000])
def test_cut_safetensors(tmp_path, kept):
    save_file({'w': torch.zeros(1000), 'v': torch.zeros(3)}, tmp_path / 'a.safetensors')
    whole = (tmp_path / 'a.safetensors').read_bytes()
    (tmp_path / 'a.safetensors').write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match='a.safetensors can.t be read as a checkpoint: it is'):
        load_checkpoint_file(tmp_path / 'a.safetensors')


def test_the_options_of_a_training_program_are_data(tmp_path):
    torch.save({'model': {'w': torch.ones(1)}, 'args': Namespace(lr=0.1, data='x')},
               tmp_path / 'a.pth')
    assert load_checkpoint_file(tmp_path / 'a.pth')['args'].lr == 0.1


def test_programs_are_no_checkpoints(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / 'a.pt')
    with pytest.raises(CheckpointError, match='a TorchScript program'):
        load_checkpoint_file(tmp_path / 'a.pt')


@pytest.mark.parametrize('place', ['meta', 'message_hub'])
def test_inferencers_run_no_config_of_a_checkpoint(tmp_path, place):
    """mmengine's execute it as Python where they are given no other."""
    from mmdet.apis import DetInferencer

    text = f'open({str(tmp_path / "owned")!r}, "w")'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': {'cfg': text},
                'message_hub': {'runtime_info': {'cfg': text}}} if place == 'message_hub' else
               {'state_dict': {'w': torch.ones(1)}, 'meta': {'cfg': text}}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='DetInferencer was given no config.*Python'):
        DetInferencer(weights=str(tmp_path / 'a.pth'), device='cpu')
    assert not (tmp_path / 'owned').exists()
