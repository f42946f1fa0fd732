"""Checkpoints load without running code, and every damaged file gives a one-line error."""

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
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from safetensors.torch import save_file

from evit_mm.checkpoint import read_checkpoint
from evit_mm.checkpoint.safe_load import load_checkpoint_file
from evit_mm.errors import CheckpointError, MissingCheckpointError


@pytest.fixture
def hostile(hostile_pickle, tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'meta': hostile_pickle},
               tmp_path / 'hostile.pth')
    return tmp_path / 'hostile.pth'


def test_training_checkpoint_round_trip(tmp_path):
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
def test_code_is_refused(hostile, override, monkeypatch):
    if override:  # the usual advice
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', override)
    model = torch.nn.Linear(1, 1)
    for attempt in (lambda: load_checkpoint_file(hostile),
                    lambda: CheckpointLoader.load_checkpoint(str(hostile)),
                    lambda: load_checkpoint(model, str(hostile))):
        with pytest.raises(CheckpointError, match='hostile.pth is refused.*run code.*open'):
            attempt()


@pytest.mark.parametrize('name', ['register_statistics', '__init__'])
def test_history_buffer_gives_access_to_nothing_else(tmp_path, name):
    """A file can reach only its four statistics."""
    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, name)

    torch.save({'x': Reach()}, tmp_path / 'reach.pth')
    with pytest.raises(CheckpointError, match='refused.*getattr'):
        load_checkpoint_file(tmp_path / 'reach.pth')


class ModifiedDtype:
    """Pickles as a numpy dtype with a state that the file chooses."""

    def __init__(self, code, *state):
        self.code, self.state = code, (3, '|', *state)

    def __reduce__(self):
        return np.dtype, (self.code, False, True), self.state


class Dtype:
    """Pickles as a numpy dtype."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return np.dtype, (self.code,)


class Array:
    """Pickles as an array of eight bytes."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __reduce__(self):
        return (np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b'b'),
                (1, (1,), self.dtype, False, b'AAAAAAAA'))


class View:
    """Pickles as an array on the memory of another."""

    def __reduce__(self):
        return np.ndarray, ((1,), 'f8', np.zeros(1))


OBJECT_FIELD = (('a',), {'a': (Dtype('O'), 0)})


@pytest.mark.parametrize('content', [
    Array(Dtype('O')), Array(ModifiedDtype('V8', None, *OBJECT_FIELD, 8, 1, 0)),
    Array(ModifiedDtype('V8', (Dtype('O'), (1,)), None, None, 8, 1, 0)),
    Array(ModifiedDtype('f8', None, *OBJECT_FIELD, 8, 8, 0)),
    Array(ModifiedDtype('U2', None, None, None, 8, 4, 1)),
    Dtype([('a', 'O')]), Dtype('>f8'), Dtype('M8[s]')])
def test_numpy_dtypes_other_than_numbers_are_refused(tmp_path, content):
    """numpy would treat bytes of the file as addresses of objects."""
    torch.save({'x': content}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='refused.*numpy.dtype'):
        load_checkpoint_file(tmp_path / 'a.pth')


def test_numpy_arrays_get_numpys_own_dtypes(tmp_path):
    # The flag marks the numbers as objects; numpy's own dtype ignores it.
    torch.save({'x': Array(ModifiedDtype('f8', None, None, None, -1, -1, 1)), 'y': View()},
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


def test_config_in_a_checkpoint_is_dropped(tmp_path):
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
        ('list.pth', whole.replace(b'PK\1\2', b'PK\1\3'),
         'it is damaged in its directory of entries'),
        ('names.pth', whole.replace(b'good/data.pkl', b'good/data\xff\xff\xff\xff').replace(
            b'PK\1\2\0\0\0\0\0\0', b'PK\1\2\0\0\0\0\0\x08'), 'it is damaged'),
        ('empty.pth', b'', 'it is empty'),
        ('cut.pth', whole[:len(whole) // 2], 'cut off'),
        ('head.pth', whole[:10], 'cut off'),
        ('page.pth', b'<!doctype html><html>404</html>', 'it is text'),
        ('noise.pth', bytes(range(128, 256)) * 4, 'it is damaged or not a file of torch.save'),
        ('other', bytes(range(1, 256)), 'it is damaged or not a checkpoint'),
        ('packed.pth.gz', gzip.compress(whole), 'it is compressed with gzip'),
        ('whole.safetensors', whole, 'it is a file of torch.save (.pth) with the suffix .saf'),
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


@pytest.mark.parametrize('name,message', [
    ('gone.pth', 'no such file: gone.pth'),
    ('folder', 'folder is a folder: name a checkpoint file (.pth, .pt or .safetensors)'),
    ('x' * 300, f"'{'x' * 300}' is not a valid file name: File name too long"),
    ('~nosuchuser/x.pth', "'~nosuchuser/x.pth' is not a valid file name: Could not determine"),
    ('a\0b', 'no such file: a')])
def test_missing_files(tmp_path, monkeypatch, name, message):
    """Users of mmengine expect FileNotFoundError, and ours are CheckpointErrors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    for attempt in (lambda: load_checkpoint_file(name), lambda: read_checkpoint(name),
                    lambda: CheckpointLoader.load_checkpoint(name),
                    lambda: load_checkpoint(torch.nn.Linear(1, 1), name)):
        with pytest.raises(FileNotFoundError) as error:
            attempt()
        assert isinstance(error.value, MissingCheckpointError)
        assert isinstance(error.value, CheckpointError)
        assert str(error.value).startswith(message)
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_missing_file_in_a_runner(tmp_path):
    runner = Runner(torch.nn.Linear(1, 1), str(tmp_path), experiment_name='missing_checkpoint')
    for attempt in (runner.load_checkpoint, runner.resume):
        with pytest.raises(MissingCheckpointError, match=r'^no such file: gone\.pth$'):
            attempt('gone.pth')


def test_missing_file_in_init_model_of_mmseg():
    from mmseg.apis import init_model

    config = Config(dict(default_scope='mmseg', model=dict(
        type='EncoderDecoder', backbone=dict(type='EfficientViT', arch='m0'),
        decode_head=dict(type='FCNHead', in_channels=192, channels=8, in_index=-1, num_classes=3,
                         num_convs=1, norm_cfg=dict(type='BN')))))
    with pytest.raises(OSError, match=r'^no such file: gone\.pth$') as error:
        init_model(config, 'gone.pth', device='cpu')
    assert isinstance(error.value, CheckpointError)


@pytest.mark.parametrize('kept', range(2, 1500, 97))
def test_cut_files_of_the_old_format(tmp_path, kept):
    torch.save({'w': torch.randn(300)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    (tmp_path / 'old.pth').write_bytes((tmp_path / 'old.pth').read_bytes()[:kept])
    with pytest.raises(CheckpointError, match='old.pth'):
        load_checkpoint_file(tmp_path / 'old.pth')


def test_files_without_permission(tmp_path, monkeypatch):
    (tmp_path / 'a.pth').touch()

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('pathlib.Path.open', refuse)  # tests may run as root, who can read all
    with pytest.raises(CheckpointError, match='can.t open .*a.pth: you have no permission'):
        load_checkpoint_file(tmp_path / 'a.pth')


def test_other_schemes_run_no_code(hostile, monkeypatch):
    """open-mmlab:// can name a local file, which mmengine passes to torch.load itself."""
    from mmengine.runner import checkpoint as mmengine_checkpoint

    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(mmengine_checkpoint, 'get_external_models',
                        lambda: {'evil': hostile.name, 'gone': 'gone.pth'})
    monkeypatch.setattr(mmengine_checkpoint, '_get_mmengine_home', lambda: str(hostile.parent))
    with pytest.raises(CheckpointError, match='open-mmlab://evil can.t be loaded'):
        CheckpointLoader.load_checkpoint('open-mmlab://evil')
    with pytest.raises(MissingCheckpointError, match='gone.pth can not be found'):
        CheckpointLoader.load_checkpoint('open-mmlab://gone')
    for name in ('torchvision://no_such_model', 'open-mmlab://no_such_model', 's3://bucket/a.pth'):
        with pytest.raises(CheckpointError):
            CheckpointLoader.load_checkpoint(name)


class _Handler(http.server.BaseHTTPRequestHandler):
    files: dict = {}
    requests: list = []
    cut = False  # end the connection in the middle of a file

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
        read_checkpoint(f'{server}/hostile.pth')


def test_simultaneous_downloads_fetch_once(server, tmp_path):
    torch.save({'w': torch.ones(2)}, tmp_path / 'good.pth')
    _Handler.files = {'/good.pth': (tmp_path / 'good.pth').read_bytes()}
    threads = [threading.Thread(target=read_checkpoint, args=(f'{server}/good.pth',))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _Handler.requests == ['/good.pth']


def test_failed_downloads_leave_nothing(server, tmp_path):
    _Handler.files = {'/model-0123456789.pth': b'another file'}
    for url, fragment in ((f'{server}/none.pth', 'Not Found'),
                          (f'{server}/model-0123456789.pth', 'invalid hash'),
                          ('http://127.0.0.1:9/x.pth', 'refused')):
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(url)
        assert url in str(error.value) and fragment in str(error.value)
    assert [path for path in (tmp_path / 'hub').rglob('*') if path.suffix == '.pth'] == []


def test_interrupted_downloads_are_not_kept(server, tmp_path, monkeypatch):
    torch.save({'w': torch.ones(20000)}, tmp_path / 'good.pth')
    _Handler.files = {'/good.pth': (tmp_path / 'good.pth').read_bytes()}
    monkeypatch.setattr(_Handler, 'cut', True)
    with pytest.raises(CheckpointError, match='could not download'):
        read_checkpoint(f'{server}/good.pth')
    assert [path.suffix for path in (tmp_path / 'hub').rglob('*') if path.is_file()] == ['.lock']
    monkeypatch.setattr(_Handler, 'cut', False)
    assert torch.equal(read_checkpoint(f'{server}/good.pth')['w'], torch.ones(20000))


@pytest.mark.parametrize('url', ['http://127.0.0.1:abc/x.pth', 'http://127.0.0.1/', 'http://[/x.pth'])
def test_malformed_addresses(url):
    with pytest.raises(CheckpointError):
        read_checkpoint(url)


def test_safetensors_load_like_any_checkpoint(tmp_path, server):
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
    ('short', b'\x10', 'it is damaged or not a safetensors file'),
    ('noise', bytes(range(128, 256)), 'it is damaged or not a safetensors file'),
    ('nested', safetensors(b'{"w": ' + b'[' * 100000), 'it is damaged in its header'),
    ('longer', safetensors({'w': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}}, b'1234'),
     'cut off before its end (12 bytes that its header lists are missing)'),
    ('shape', safetensors({'w': {'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 16]}},
                          bytes(16)), 'it is damaged ('),
    ('overlap', safetensors({'w': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]},
                             'v': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}},
                            bytes(16)), 'it is damaged ('),
    ('offsets', safetensors({'w': {'dtype': 'F32', 'shape': [4]}}, bytes(16)),
     'it is damaged in its header'),
    ('huge', (1 << 62).to_bytes(8, 'little') + b'{"w": 1}', 'its header has a wrong length'),
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


def test_options_of_a_training_program_are_data(tmp_path):
    torch.save({'model': {'w': torch.ones(1)}, 'args': Namespace(lr=0.1, data='x')},
               tmp_path / 'a.pth')
    assert load_checkpoint_file(tmp_path / 'a.pth')['args'].lr == 0.1


def test_torchscript_programs_are_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / 'a.pt')
    with pytest.raises(CheckpointError, match='a TorchScript program'):
        load_checkpoint_file(tmp_path / 'a.pt')


@pytest.mark.parametrize('place', ['meta', 'message_hub'])
def test_inferencers_execute_no_config_of_a_checkpoint(tmp_path, place):
    """mmengine's inferencers execute it as Python if they get no other."""
    from mmdet.apis import DetInferencer

    text = f'open({str(tmp_path / "owned")!r}, "w")'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': {'cfg': text},
                'message_hub': {'runtime_info': {'cfg': text}}} if place == 'message_hub' else
               {'state_dict': {'w': torch.ones(1)}, 'meta': {'cfg': text}}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='DetInferencer needs a config.*Python'):
        DetInferencer(weights=str(tmp_path / 'a.pth'), device='cpu')
    assert not (tmp_path / 'code_was_run').exists()
