"""Headers of images are read in parallel, and a file that can't be read says why."""

import time

import pytest
from PIL import ExifTags, Image

from evit_mm.data.check import image_headers, read_header, read_headers


def save(path, size=(12, 8), mode='RGB', orientation=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new(mode, size).save(path, exif=exif, **options)
    return str(path)


@pytest.mark.parametrize('orientation,displayed', [
    (None, (12, 8)), (1, (12, 8)), (2, (12, 8)), (3, (12, 8)), (4, (12, 8)),
    (5, (8, 12)), (6, (8, 12)), (7, (8, 12)), (8, (8, 12)), (0, (12, 8)), (9, (12, 8))])
def test_orientations(tmp_path, orientation, displayed):
    header = read_header(save(tmp_path / 'a.jpg', orientation=orientation))
    assert (header.size, header.displayed_size) == ((12, 8), displayed)
    assert header.orientation == (orientation if orientation in range(1, 9) else 1)
    assert (header.mode, header.format, header.error) == ('RGB', 'JPEG', '')


@pytest.mark.parametrize('suffix,mode', [
    ('.png', 'L'), ('.png', 'I;16'), ('.png', 'RGBA'), ('.jpg', 'CMYK'), ('.png', 'P'),
    ('.tif', 'RGB'), ('.bmp', 'RGB'), ('.webp', 'RGB')])
def test_modes(tmp_path, suffix, mode):
    header = read_header(save(tmp_path / f'a{suffix}', mode=mode))
    assert (header.mode, header.size, header.error) == (mode, (12, 8), '')


@pytest.mark.parametrize('content,reason', [
    (b'', 'it is empty'), (b'<html>404</html>', 'it is not an image'),
    (b'\x89PNG\r\n\x1a\n', None), (b'\xff\xd8\xff', None)])
def test_files_that_are_no_images(tmp_path, content, reason):
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    error = read_header(str(path)).error
    assert error == reason if reason else error and '\n' not in error
    assert read_header(str(tmp_path / 'none.jpg')).error == 'there is no such file'
    assert read_header(str(tmp_path)).error
    assert read_header('a\0b').error


def test_many_in_order_and_each_once(tmp_path):
    paths = [save(tmp_path / f'{n}.png', size=(n + 1, 2)) for n in range(20)]
    headers = read_headers([*paths, *paths, 'none.png'])
    assert list(headers) == [*paths, 'none.png']
    assert [headers[path].width for path in paths] == list(range(1, 21))


def test_time_limit(tmp_path, monkeypatch):
    """What was not read in time is left out, and what was is right."""
    clock = iter([0.0, 1.0, 99.0])
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    monkeypatch.setattr(image_headers, '_BATCH', 4)
    paths = [save(tmp_path / f'{n}.png', size=(n + 1, 2)) for n in range(10)]
    headers = read_headers(paths, seconds=10)
    assert {path: header.width for path, header in headers.items()} == dict(
        zip(paths[:4], range(1, 5), strict=True))


def test_images_larger_than_pillows_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 20)
    path = save(tmp_path / 'a.png')
    assert read_headers([path])[path].error == ''
    assert Image.MAX_IMAGE_PIXELS == 20
