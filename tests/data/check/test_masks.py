"""Every fault of label maps is found, and sound ones are counted exactly."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from evit_mm.data.check import ImageHeader, Severity, check_masks, check_orientations
from evit_mm.data.check.masks import turned


@pytest.fixture
def check(tmp_path):
    """Function that writes label maps of some rows, and checks them."""

    def run(*maps, images=None, **options):
        paths = []
        for i, content in enumerate(maps):
            path = tmp_path / f'{i}.png'
            if isinstance(content, Image.Image):
                content.save(path)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                Image.fromarray(np.asarray(content, np.uint8)).save(path)
            paths.append(str(path))
        if images is not None:
            options['images'] = dict(zip(paths, map(str, images), strict=True))
        return check_masks(paths, **options)

    return run


def kinds(check, *severities):
    return {finding.kind for finding in check.findings.of(*severities or (
        Severity.ERROR, Severity.WARNING))}


def sentence(check, kind):
    finding, = (finding for finding in check.findings if finding.kind == kind)
    assert '\n' not in finding.message
    return finding.message


def test_counts(check):
    found = check([[0, 0, 1, 255]], [[1, 1, 1, 2]], classes=['a', 'b', 'c', 'd'])
    counts = found.counts
    assert counts.pixels[:4].tolist() == [2, 4, 1, 0] and counts.pixels[255] == 1
    assert counts.maps[:4].tolist() == [1, 2, 1, 0]
    assert counts.absent == ['d'] and counts.ignored == 1 / 8
    assert kinds(found) == {'absent'} and sentence(found, 'absent').endswith(': d')
    assert 'b 57.1% (2), a 28.6% (1), c 14.3% (1)' in sentence(found, 'labels')
    assert '12.5% of the pixels are ignored' in sentence(found, 'labels')


def test_zero_is_unlabelled(check):
    found = check([[0, 1, 2, 2]], classes=['a', 'b'], zero_is_unlabelled=True)
    assert found.counts.pixels[[0, 1, 255]].tolist() == [1, 2, 1] and not kinds(found)


def test_classes_from_the_numbers(check):
    assert check([[0, 3, 255]]).counts.classes == ['class_0', 'class_1', 'class_2', 'class_3']
    assert check([[0, 2]], zero_is_unlabelled=True).counts.classes == ['class_1', 'class_2']


def test_numbers_of_classes(check):
    found = check([[0, 0, 255, 255]], classes=['background', 'object'], values=(0, 255))
    assert not kinds(found) and found.counts.pixels[:2].tolist() == [2, 2]
    assert '7' in sentence(check([[0, 7]], classes=['a', 'b'], values=(0, 255)), 'values')


@pytest.mark.parametrize('options,fragments', [
    (dict(classes=['background', 'object']), ['only 0 and 255', 'mask_values=(0, 255)']),
    (dict(), ['only 0 and 255']),
    (dict(classes=['object'], zero_is_unlabelled=True), ['every pixel', 'reduce_zero_label=True'])])
def test_masks_in_black_and_white(check, options, fragments):
    found = check([[0, 0, 255]], [[0, 255, 255]], **options)
    errors = found.findings.of(Severity.ERROR)
    assert len(errors) == 1
    assert all(fragment in errors[0].message for fragment in fragments)


def test_one_class(check):
    assert 'nothing to tell apart' in sentence(
        check([[1, 1, 255]], classes=['a', 'b']), 'one class')
    assert kinds(check([[1, 1]], classes=['a', 'b']), Severity.WARNING) == {'one class'}
    assert kinds(check([[0, 1, 255, 255, 255]], classes=['a', 'b'])) == {'ignored'}
    assert kinds(check([[255, 255]], classes=['a', 'b']), Severity.ERROR) == {'all ignored'}


@pytest.mark.parametrize('content,fragment', [
    (Image.new('RGB', (4, 4)), 'has 3 channels'), (Image.new('RGBA', (4, 4)), 'has 4 channels'),
    (Image.fromarray(np.full((4, 4), 300, np.uint16)), '300'), (b'', 'it is empty'),
    (b'no image', 'is not an image')])
def test_files_that_are_no_label_maps(check, content, fragment):
    found = check(content, [[0, 1]], classes=['a', 'b'])
    assert kinds(found, Severity.ERROR) == {'unusable'}
    assert fragment in sentence(found, 'unusable') and '0.png' in sentence(found, 'unusable')


def test_jpeg_label_maps_under_any_name(check, tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / 'a.jpg')
    found = check((tmp_path / 'a.jpg').read_bytes(), classes=['a', 'b'])
    assert 'is a JPEG file' in sentence(found, 'unusable')


def test_palettes_and_bits(check):
    coloured = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'P')
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    assert check(coloured, classes=['a', 'b', 'c']).counts.pixels[:3].tolist() == [1, 1, 1]
    assert check(Image.fromarray(np.array([[0, 1]], bool)), classes=['a', 'b']).counts.present \
        == [0, 1]
    deep = Image.fromarray(np.array([[0, 1]], np.uint16))
    assert check(deep, classes=['a', 'b']).counts.present == [0, 1]


def photo(path, size, orientation=1):
    image = Image.new('RGB', size)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def test_sizes_and_orientations(check, tmp_path):
    both = np.array([[0, 1, 0], [0, 1, 0]])  # 3 wide, 2 high
    plain = photo(tmp_path / 'plain.jpg', (3, 2))
    turned_image = photo(tmp_path / 'turned.jpg', (3, 2), 6)
    upside_down = photo(tmp_path / 'down.jpg', (3, 2), 3)
    options = dict(classes=['a', 'b'])
    assert not kinds(check(both, images=[plain], **options))
    assert not kinds(check(both.T, images=[turned_image], **options))
    found = check(both, images=[turned_image], **options)
    assert not kinds(found) and 'as stored' in sentence(found, 'drawn as stored')
    assert kinds(check(both, images=[upside_down], **options), Severity.WARNING) == {'orientation'}
    found = check(both, both, images=[upside_down, turned_image], **options)
    assert kinds(found, Severity.ERROR) == {'orientation'}
    found = check(both.T, images=[plain], **options)
    assert 'is 3x2 (height x width), but its image' in sentence(found, 'size')
    assert str(tmp_path / 'none.jpg') in sentence(
        check(both, images=[tmp_path / 'none.jpg'], **options), 'image')


def test_square_images_do_not_tell_how_they_were_drawn():
    header = ImageHeader(4, 4, orientation=6)
    finding, = check_orientations({'a': header}, {'a': (4, 4)})
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize('orientation', range(1, 9))
def test_turns_as_viewers_do(orientation, tmp_path):
    """As Pillow and OpenCV turn an image of this orientation."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(values)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / 'a.png', exif=exif)
    with Image.open(tmp_path / 'a.png') as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    np.testing.assert_array_equal(turned(values, orientation), expected)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'a.png'), cv2.IMREAD_COLOR)[..., 0],
                                  expected)
