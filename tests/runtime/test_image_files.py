"""Images are read as mmcv's loader reads them, or refused in a sentence."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image, PngImagePlugin

from evit_runtime.errors import UserError
from evit_runtime.image_files import images_of_any_size, read_image


@pytest.fixture
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (7, 10, 3), np.uint8)
    return Image.fromarray(cv2.resize(noise, (50, 35)))


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def save_16_bit(path, picture, colours):
    values = np.asarray(picture).astype(np.uint16) * 256 + 77
    cv2.imwrite(str(path), values if colours else values[..., 0])


KINDS = {
    'jpeg.jpg': lambda path, picture: picture.save(path),
    'grey.png': lambda path, picture: picture.convert('L').save(path),
    'black_and_white.png': lambda path, picture: picture.convert('1').save(path),
    'transparent.png': lambda path, picture: picture.convert('RGBA').save(path),
    'palette.png': lambda path, picture: picture.convert('P').save(path),
    'deep.png': lambda path, picture: save_16_bit(path, picture, True),
    'deep_grey.png': lambda path, picture: save_16_bit(path, picture, False),
    'deep.tiff': lambda path, picture: save_16_bit(path, picture, True),
    'print.jpg': lambda path, picture: picture.convert('CMYK').save(path),
    'animated.gif': lambda path, picture: picture.save(
        path, save_all=True, append_images=[Image.new('RGB', (50, 35), 'red')]),
    'animated.webp': lambda path, picture: picture.save(
        path, lossless=True, save_all=True, append_images=[Image.new('RGB', (50, 35), 'red')]),
    'one_pixel.png': lambda path, picture: picture.crop((0, 0, 1, 1)).save(path),
    'no_suffix': lambda path, picture: picture.save(path, format='PNG'),
    **{f'turned_{k}.jpg': lambda path, picture, k=k: picture.save(path, exif=exif(k))
       for k in range(1, 9)},
}


if not cv2.haveImageWriter('animated.gif'):  # before OpenCV 4.12, without GIF
    del KINDS['animated.gif']


@pytest.mark.parametrize('name', KINDS)
def test_files_of_any_kind_are_read_as_by_mmcv(name, picture, tmp_path):
    path = tmp_path / name
    KINDS[name](path, picture)
    expected = LoadImageFromFile().transform(dict(img_path=str(path)))['img']
    array = read_image(path)
    assert array.dtype == np.uint8 and (array == expected).all()
    if name.startswith('turned'):
        assert array.shape == ((50, 35, 3) if name[7] in '5678' else (35, 50, 3))
    elif name.startswith('animated'):
        assert np.abs(array[..., ::-1].astype(int) - np.asarray(picture)).mean() < 20


@pytest.mark.parametrize('name', KINDS)
def test_pillow_images_are_as_their_files(name, picture, tmp_path):
    path = tmp_path / name
    KINDS[name](path, picture)
    difference = np.abs(read_image(Image.open(path)).astype(int) - read_image(path))
    # The two libraries round differently where they convert from CMYK or from 16 bits, or decode
    # JPEG and GIF.
    assert difference.max() <= {'.jpg': 8, '.gif': 8, '.tiff': 1}.get(path.suffix, 0)


def damaged(path, picture, keep):
    picture.save(path)
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize('name, write, message', [
    ('gone.png', lambda path, picture: None, '^no such file: .*gone.png$'),
    ('empty.png', lambda path, picture: path.write_bytes(b''), 'empty.png: it is empty$'),
    ('text.jpg', lambda path, picture: path.write_text('text'), 'text.jpg: it is not an image$'),
    ('folder.jpg', lambda path, picture: path.mkdir(), 'folder.jpg: Is a directory$'),
    ('half.jpg', lambda path, picture: damaged(path, picture, 900),
     'half.jpg was cut off: its file ends too early$'),
    ('half.png', lambda path, picture: damaged(path, picture, 900), 'half.png was cut off'),
    ('half.bmp', lambda path, picture: damaged(path, picture, 30), 'half.bmp: '),
    ('float.tiff', lambda path, picture: Image.fromarray(np.eye(9, dtype=np.float32)).save(path),
     'its pixels are 32-bit numbers'),
])
def test_what_is_not_an_image_is_named(name, write, message, picture, tmp_path):
    write(tmp_path / name, picture)
    with pytest.raises(UserError, match=message) as caught:
        read_image(tmp_path / name)
    assert '\n' not in str(caught.value)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new('1', (20_000, 20_000)).save(tmp_path / 'huge.png')
    monkeypatch.setattr(cv2, 'imdecode', None)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', None)
    with pytest.raises(UserError, match='huge.png has 20000x20000 pixels, more than the limit of '
                                        '100 megapixels; .* --max-megapixels 400, or max_pixels'):
        read_image(tmp_path / 'huge.png')


def test_a_higher_limit(tmp_path, picture):
    picture.save(tmp_path / 'a.png')
    with pytest.raises(UserError, match='more than the limit of 0.001749 megapixels'):
        read_image(tmp_path / 'a.png', max_pixels=1749)
    assert read_image(tmp_path / 'a.png', max_pixels=1750).shape == (35, 50, 3)


@pytest.mark.parametrize('array', [
    np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)),
    np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8, 4), np.uint8)])
def test_other_arrays_are_refused(array):
    with pytest.raises(UserError, match='an array is .height, width, 3. of type uint8'):
        read_image(array)


def test_other_objects_are_refused():
    with pytest.raises(UserError, match='a path, an array or a Pillow image, but got a int'):
        read_image(3)


def test_pillows_own_limit_stays_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5)
    first, second = images_of_any_size(), images_of_any_size()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == 5
