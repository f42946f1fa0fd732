"""An image that goes bad during a training ends it in a sentence, or is replaced and counted."""

import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from faults.toy_training import build
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

from evit_mm.cli.main import _exit_status
from evit_mm.data.loading import (
    check_images_while_loading,
    skip_images_that_fail,
    take_skipped_images,
)
from evit_mm.engine.hooks import skipped_images
from evit_mm.engine.hooks.skipped_images import SkippedImagesHook

pytestmark = pytest.mark.faults


@DATASETS.register_module(force=True)
class FolderOfPictures(BaseDataset):
    """Dataset of the images in a folder, each as four numbers."""

    def load_data_list(self):
        return [dict(img_path=path) for path in self._metainfo['files']]


def pack(results):
    return dict(inputs=results['img'].reshape(-1)[:4].astype(np.float32),
                data_samples=SimpleNamespace(metainfo=dict(img_path=results['img_path'])))


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


def no_image(path):
    path.write_bytes(b'GIF89a')


def empty(path):
    path.write_bytes(b'')


def remove(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def huge(path):
    """Write the start of a PNG file that says it is 60,000 pixels high and wide."""
    header = b'IHDR' + struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header
                     + struct.pack('>I', zlib.crc32(header)))


def noise(path):
    """Keep the signature of a PNG file, and nothing else of it."""
    content = path.read_bytes()
    path.write_bytes(content[:8] + np.random.default_rng(0).bytes(len(content) - 8))


@pytest.fixture
def pictures(tmp_path):
    files = []
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        files.append(tmp_path / f'{number}.png')
        Image.fromarray(pixels).save(files[-1])
    return files


def runner(tmp_path, pictures, workers, skip):
    config = Config(dict(train_dataloader=dict(
        batch_size=2, num_workers=workers, sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='FolderOfPictures', metainfo=dict(files=[*map(str, pictures)]),
                     pipeline=[dict(type='LoadImageFromFile'), pack]))))
    (skip_images_that_fail if skip else check_images_while_loading)(config)
    built = build(tmp_path / 'run', hooks=[SkippedImagesHook()], length=10)
    built._train_dataloader = config.train_dataloader
    return built


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('damage', [cut, no_image, empty, remove, folder, huge, noise],
                         ids=lambda function: function.__name__)
def test_it_ends_in_a_sentence_or_is_replaced(damage, workers, pictures, tmp_path, monkeypatch,
                                              capsys, record_property):
    record_property('an image that goes bad during a training', 2)
    take_skipped_images()
    damage(pictures[7])
    options = SimpleNamespace(launcher='none', resume=None)
    status = _exit_status(lambda: options,
                          lambda _: runner(tmp_path, pictures, workers, False).train())
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    if workers:  # `evit_mm.train` takes the sentence out of the worker's traceback
        assert str(pictures[7]) in printed and status == 2
    else:
        assert printed.startswith('error: ') and str(pictures[7]) in printed and status == 2
    logged = []
    monkeypatch.setattr(skipped_images, 'print_log', lambda text, **_: logged.append(text))
    runner(tmp_path, pictures, workers, True).train()
    assert str(pictures[7]) in logged[0] and logged[0].endswith('(another image takes its place)')
    # Two passes over the images; the one drawn in its place may be itself.
    assert logged[-1].startswith('1 images could not be loaded and were replaced ')
    assert int(logged[-1].split('replaced ')[1].split(' ')[0]) >= 2
