"""Images are loaded as mmcv loads them, or are refused with a sentence that names the file."""

import io

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import ExifTags, Image

from evit_mm.data.loading import CheckedLoadImage, check_images_while_loading
from evit_mm.errors import UserError


@pytest.fixture
def picture() -> Image.Image:
    """An image of 48x32 pixels whose corners differ, so that every rotation does."""
    y, x = np.mgrid[:32, :48]
    return Image.fromarray(np.stack([5 * x, 7 * y, 2 * (x + y)], axis=-1).astype('uint8'))


def encode(image, kind, orientation=None, **options):
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.fixture
def load(tmp_path):
    """Function that writes an image file and loads it, for annotations of a width and height."""
    def run(content, size=None, name='a.jpg', **options):
        path = tmp_path / name
        path.write_bytes(content)
        results = dict(img_path=str(path), **(
            dict(width=size[0], height=size[1]) if size else {}))
        return CheckedLoadImage(**options)(results)
    return run


def as_mmcv(tmp_path, name='a.jpg', **options):
    return LoadImageFromFile(**options)(dict(img_path=str(tmp_path / name)))


def refused(load, *arguments, fragments=(), **options):
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    text = str(caught.value)
    assert all(fragment in text for fragment in ('a.jpg', *fragments)), text
    assert '\n' not in text


@pytest.mark.parametrize('kind,mode', [
    ('JPEG', 'RGB'), ('JPEG', 'L'), ('JPEG', 'CMYK'), ('PNG', 'RGB'), ('PNG', 'L'),
    ('PNG', 'RGBA'), ('PNG', 'P'), ('PNG', '1'), ('BMP', 'RGB'), ('WEBP', 'RGB'), ('TIFF', 'RGB')])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_sound_images(load, picture, tmp_path, kind, mode, backend):
    """Grey, transparent, CMYK and palette images become three channels as they do in mmcv."""
    loaded = load(encode(picture.convert(mode), kind), (48, 32), imdecode_backend=backend)
    expected = as_mmcv(tmp_path, imdecode_backend=backend)
    assert loaded['img'].shape == (32, 48, 3)
    assert np.array_equal(loaded['img'], expected['img'])
    assert loaded['img_shape'] == loaded['ori_shape'] == expected['ori_shape'] == (32, 48)


@pytest.mark.parametrize('options', [
    {}, dict(to_float32=True), dict(color_type='unchanged'), dict(color_type='grayscale')])
def test_16_bits(load, picture, tmp_path, options):
    deep = Image.fromarray(np.asarray(picture.convert('L')).astype('uint16') * 257)
    loaded = load(encode(deep, 'PNG'), (48, 32), **options)
    expected = as_mmcv(tmp_path, **options)
    assert np.array_equal(loaded['img'], expected['img'])
    assert loaded['img'].dtype == expected['img'].dtype


# OpenCV reads GIF from 4.12 on.
@pytest.mark.parametrize('kind', [*(['GIF'] * cv2.haveImageWriter('a.gif')), 'PNG', 'WEBP'])
def test_animated_images(load, picture, tmp_path, kind):
    """The first frame is the image."""
    frames = dict(save_all=True, append_images=[picture.rotate(180)])
    loaded = load(encode(picture.convert('P' if kind == 'GIF' else 'RGB'), kind, **frames),
                  (48, 32))
    assert np.array_equal(loaded['img'], as_mmcv(tmp_path)['img'])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_labels_of_stored_and_of_displayed_pixels(load, picture, tmp_path, orientation):
    content = encode(picture, 'JPEG', orientation, quality=95)
    displayed = as_mmcv_of(load, content, tmp_path)
    stored = as_mmcv_of(load, content, tmp_path, color_type='color_ignore_orientation')
    assert not np.array_equal(displayed, stored) or orientation == 1
    loaded = load(content, displayed.shape[1::-1])
    assert np.array_equal(loaded['img'], displayed)
    if displayed.shape != stored.shape:
        loaded = load(content, stored.shape[1::-1])
        assert np.array_equal(loaded['img'], stored)
        assert loaded['ori_shape'] == (32, 48)
    # Where the size does not tell, as after 180 degrees, it is shown as by a viewer.
    assert np.array_equal(load(content)['img'], displayed)


def as_mmcv_of(load, content, tmp_path, **options):
    load(content)
    return as_mmcv(tmp_path, **options)['img']


def test_stored_pixels_in_grey(load, picture):
    loaded = load(encode(picture, 'JPEG', 6), (48, 32), color_type='grayscale')
    assert loaded['img'].shape[:2] == (32, 48)


@pytest.mark.parametrize('size', [(32, 48), (24, 16), (49, 32)])
def test_images_of_another_size(load, picture, size):
    refused(load, encode(picture, 'JPEG'), size,
            fragments=['is 48x32 (width x height)', f'{size[0]}x{size[1]}'])


@pytest.mark.parametrize('kind,options', [
    ('JPEG', {}), ('JPEG', dict(progressive=True)), ('JPEG', dict(restart_marker_blocks=1)),
    ('PNG', {})])
def test_cut_off_images(load, picture, kind, options):
    whole = encode(picture, kind, **options)
    load(whole)
    load(whole + b'what cameras append')
    for share in (0.3, 0.6, 0.9, 0.99):
        refused(load, whole[:int(share * len(whole))])
    refused(load, whole[:-8 if kind == 'PNG' else -2], fragments=['was cut off'])


def test_thumbnails_have_an_end_of_their_own(load, picture):
    """A JPEG inside the metadata is whole, though the file around it is cut off."""
    small = encode(picture.resize((8, 8)), 'JPEG')
    whole = encode(picture, 'JPEG')
    segment = b'\xff\xe2' + (len(small) + 2).to_bytes(2, 'big') + small
    load(whole[:2] + segment + whole[2:])
    refused(load, whole[:2] + segment + whole[2:len(whole) // 2 + 100], fragments=['cut off'])


@pytest.mark.parametrize('content', [b'<html>404 Not Found</html>', b'', b'\0' * 999])
@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_files_that_are_no_images(load, content, backend):
    refused(load, content, imdecode_backend=backend, fragments=['can\'t be decoded'])


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match='can\'t read the image .*none.jpg: No such file'):
        CheckedLoadImage()(dict(img_path=str(tmp_path / 'none.jpg')))


@pytest.mark.parametrize('content', [b'', b'text', b'\xff\xd8\xff\xe0'])
def test_images_that_may_be_missing(load, content, tmp_path):
    """With mmcv's ``ignore_empty``, the dataset takes another image."""
    assert load(content, ignore_empty=True) is None
    assert CheckedLoadImage(ignore_empty=True)(dict(img_path=str(tmp_path / 'none.jpg'))) is None


def test_loaders_of_a_config_are_replaced():
    steps = [dict(type='LoadImageFromFile'), dict(type='mmdet.LoadImageFromFile'),
             dict(type=LoadImageFromFile), dict(type='LoadImageFromWebcam'),
             dict(type='LoadImageFromFile', file_client_args=dict(backend='disk'))]
    config = Config(dict(
        train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=steps))),
        test_dataloader=dict(dataset=dict(pipeline=[
            dict(type='TestTimeAug', transforms=[[dict(type='LoadImageFromFile')]])]))))
    check_images_while_loading(config)
    checked = 'evit_mm.data.loading.CheckedLoadImage'
    assert [step.type for step in config.train_dataloader.dataset.dataset.pipeline] == [
        checked, checked, checked, 'LoadImageFromWebcam', 'LoadImageFromFile']
    assert config.test_dataloader.dataset.pipeline[0].transforms[0][0].type == checked
