"""Files that are made to hurt are refused quickly, in a sentence, and at little memory."""

import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from argparse import Namespace as Options
from collections import OrderedDict

import numpy as np
import pytest
import torch
from faults.toy_training import build
from mmengine.hooks import Hook
from PIL import Image

from evit_mm.checkpoint import pickle_limits
from evit_mm.checkpoint.safe_load import load_checkpoint_file
from evit_mm.data.check.image_headers import read_headers
from evit_mm.data.image_limits import too_many_pixels
from evit_mm.data.loading import CheckedLoadImage
from evit_mm.engine.hooks import NonFiniteHook, StopSignalHook
from evit_mm.errors import CheckpointError, UserError


def saved(path, instructions):
    """Write a file of torch.save with other instructions in its pickle."""
    torch.save({'state_dict': {}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in entries:
            archive.writestr(name, instructions if name.endswith('data.pkl') else content)
    return path


def text(value):
    content = value.encode()
    return b'X' + struct.pack('<I', len(content)) + content


def nested(first, combine, levels=12, width=10):
    """Return instructions for a value in which each level repeats the one below."""
    code = first + b'q\x00'
    for level in range(levels):
        code += combine(b'h' + bytes([level]), width) + b'q' + bytes([level + 1])
    return code


def tuples(part, width):
    return b'(' + part * width + b't'


def lists(part, width):
    return b'](' + part * width + b'e'


DICT = b'\x80\x02}('


def persistent(length):
    return b'(' + text('storage') + b'ctorch\nFloatStorage\n' + text('0') + text('cpu') + \
        b'J' + struct.pack('<i', length) + b'tQ'


def tensor(shape, length=1):
    sizes = b'(' + b''.join(b'J' + struct.pack('<i', number) for number in shape) + b't'
    strides = b'(' + b'K\x00' * len(shape) + b't'
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + persistent(length) + b'K\x00' + sizes + \
        strides + b'\x89ccollections\nOrderedDict\n)RtR'


HOSTILE = {
    'a key of nested tuples': (DICT + nested(text('a'), tuples) + b'Nu.', 'a key of'),
    'lists that repeat themselves': (DICT + text('x') + nested(text('a'), lists) + b'u.',
                                     'repeated without end'),
    'deep lists': (DICT + text('x') + b'](' * 5000 + b'e' * 5000 + b'u.', 'inside each other'),
    'a bytearray': (DICT + text('x') + b'cbuiltins\nbytearray\n(\x8a\x05\x00\x00\x00\x80\x00tRu.',
                    'builtins.bytearray'),
    'an old tensor of a length': (DICT + text('x') + b'ctorch\nFloatTensor\n(J'
                                  + struct.pack('<i', 2**30) + b'tRu.', 'FloatTensor'),
    'a method of a dictionary': (DICT + text('x') + b'ccollections\nOrderedDict\n)R}('
                                 + text('items') + b'Nubu.',
                                 'a dictionary with attributes'),
    'a number that is repeated': (DICT + text('x') + tensor([2**20, 2**12]) + b'u.',
                                  'a tensor of shape'),
    'a storage beyond the file': (DICT + text('x') + tensor([4], 2**30) + b'u.', 'a storage of'),
    'a slow codec': (DICT + text('x') + b'c_codecs\nencode\n(' + text('ü' * 10) + text('punycode')
                     + b'tRu.', '_codecs.encode'),
    'no end': (DICT, 'damaged'),
    'a name that controls the terminal': (DICT + text('x') + b'c\x1b[2J\x14a\nb\n)Ru.',
                                          'refers to \\x1b[2J\\x14a.b'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_checkpoint_is_refused(name, tmp_path, record_property):
    record_property('a hostile checkpoint', 1)
    instructions, reason = HOSTILE[name]
    path = saved(tmp_path / 'hostile.pth', instructions)
    before = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint_file(path)
    assert time.monotonic() - before < 2
    assert reason in str(caught.value) and '\n' not in str(caught.value)


def test_a_compressed_checkpoint_is_refused(tmp_path, record_property):
    record_property('a hostile checkpoint', 1)
    saved(tmp_path / 'a.pth', DICT + b'u.')
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive, \
            zipfile.ZipFile(tmp_path / 'b.pth', 'w', zipfile.ZIP_DEFLATED) as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry) + b'\0' * 1_000_000)
    with pytest.raises(CheckpointError, match='compressed entry'):
        load_checkpoint_file(tmp_path / 'b.pth')


@pytest.mark.faults
def test_the_shared_cases(hostile_cases):
    code = ('import resource, sys; import evit_mm; '
            'from evit_mm.checkpoint.safe_load import load_checkpoint_file\n'
            'limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
            'for path in sys.argv[1:]:\n'
            '    try:\n        load_checkpoint_file(path)\n'
            '    except Exception as error:\n        print(type(error).__name__)\n'
            'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit)')
    done = subprocess.run([sys.executable, '-c', code, *map(str, sorted(hostile_cases.iterdir()))],
                          capture_output=True, text=True, timeout=300)
    *errors, grown = done.stdout.split()
    assert errors == ['CheckpointError'] * 3 and int(grown) < 200_000, done.stderr


def test_sound_checkpoints_pass(tmp_path):
    """Of a training with all parts, of torch's old format, and with types of other programs."""
    build(tmp_path, length=3, ema=True, validate=True, workers=2).train()
    for path in tmp_path.glob('*.pth'):
        pickle_limits.check_limits(path)
    shared = torch.zeros(5)
    content = dict(
        state_dict=OrderedDict(a=shared, b=shared[1:], c=torch.zeros(3, 1).expand(3, 100)),
        args=Options(lr=0.1, betas=(0.9, 0.999)), numbers=np.arange(4), number=np.float64(3),
        names={('a', ('b', 'c')): [1, 2.5, None, True, 2**70]}, size=shared.shape, kind={1, 2},
        parameter=torch.nn.Parameter(torch.ones(2)), half=torch.ones(2, dtype=torch.bfloat16))
    for number, options in enumerate((dict(), dict(_use_new_zipfile_serialization=False))):
        path = tmp_path / f'{number}.bin'
        torch.save(content, path, **options)
        pickle_limits.check_limits(path)


@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.faults)
                                       for seed in range(1, 20))])
def test_damaged_pickles_raise_one_error(seed, tmp_path, record_property):
    """Of all kinds of damage, none ends in another error, and none takes long."""
    record_property('a damaged checkpoint', 40)
    numbers = random.Random(seed)
    torch.save({'state_dict': OrderedDict(a=torch.ones(3)), 'meta': {'iter': 3}},
               tmp_path / 'sound.pth')
    with zipfile.ZipFile(tmp_path / 'sound.pth') as archive:
        sound = next(archive.read(name) for name in archive.namelist()
                     if name.endswith('data.pkl'))
    for _ in range(40):
        damaged = bytearray(sound)
        for _ in range(numbers.randint(1, 6)):
            damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        path = saved(tmp_path / 'damaged.pth', bytes(damaged))
        before = time.monotonic()
        try:
            load_checkpoint_file(path)
        except CheckpointError as error:
            assert '\n' not in str(error)
        assert time.monotonic() - before < 5


def png(width, height):
    """Return the start of a PNG file of a size, whose pixels compress to almost nothing."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack(
            '>I', zlib.crc32(kind + content))

    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0,
                                                            0)) + \
        chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_an_image_of_too_many_pixels(backend, tmp_path, record_property):
    record_property('an image of too many pixels', 1)
    path = tmp_path / 'bomb.png'
    path.write_bytes(png(30_000, 30_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        CheckedLoadImage(imdecode_backend=backend)(dict(img_path=str(path)))
    assert str(path) in str(caught.value) and '30000x30000 pixels' in str(caught.value)
    assert 'EVIT_MM_MAX_PIXELS' in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert '30000x30000 pixels' in read_headers([str(path)])[str(path)].error


def test_the_limit_can_be_moved(monkeypatch, tmp_path):
    Image.new('RGB', (20, 10)).save(tmp_path / 'small.png')
    content = (tmp_path / 'small.png').read_bytes()
    assert not too_many_pixels(content)
    monkeypatch.setenv('EVIT_MM_MAX_PIXELS', '199')
    assert '20x10 pixels' in too_many_pixels(content)
    monkeypatch.setenv('EVIT_MM_MAX_PIXELS', '200')
    assert not too_many_pixels(content) and not too_many_pixels(b'not an image')
    monkeypatch.setenv('EVIT_MM_MAX_PIXELS', 'many')
    with pytest.raises(UserError, match='EVIT_MM_MAX_PIXELS=many is not a number'):
        too_many_pixels(content)


@pytest.mark.faults
@pytest.mark.parametrize('suffix', ['png', 'jpg', 'bmp'])
def test_damaged_images_raise_one_error(suffix, tmp_path, record_property):
    """Of 50 damaged images of each kind, none ends in another error, and all name the file."""
    record_property('a damaged image', 50)
    numbers = random.Random(1)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    path = tmp_path / f'image.{suffix}'
    Image.fromarray(pixels).save(path)
    sound = path.read_bytes()
    load = CheckedLoadImage()
    for _ in range(50):
        damaged = bytearray(sound)
        for _ in range(numbers.randint(1, 8)):
            damaged[numbers.randrange(min(len(damaged), 200))] = numbers.randrange(256)
        path.write_bytes(damaged[:numbers.randint(0, len(damaged))])
        try:
            load(dict(img_path=str(path)))
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error)


@pytest.mark.faults
def test_a_long_training_takes_no_more_memory(tmp_path, record_property):
    """2,000 iterations with workers: the memory of the second half does not grow."""
    record_property('iterations without more memory', 2000)
    class Memory(Hook):
        def __init__(self):
            self.pages = []

        def after_train_iter(self, runner, *_, **__):
            if runner.iter % 100 == 99:
                with open('/proc/self/statm') as file:
                    self.pages.append(int(file.read().split()[1]))

    memory = Memory()
    build(tmp_path, length=2000, interval=500, size=400, workers=1,
          hooks=[memory, NonFiniteHook(), StopSignalHook()]).train()
    growth = (memory.pages[-1] - memory.pages[9]) * resource.getpagesize()
    assert growth < 4_000_000
