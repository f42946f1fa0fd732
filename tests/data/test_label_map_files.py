"""Images and label maps are paired by name, or the files without a partner are named."""

import pytest

from evit_mm.data.label_map_files import label_map_ending, pair_files
from evit_mm.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Function that creates empty files in the folders ``i`` and ``m``, and returns these."""

    def create(images, maps):
        for folder, names in (('i', images), ('m', maps)):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name in names.split():
                (tmp_path / folder / name).parent.mkdir(exist_ok=True)
                (tmp_path / folder / name).touch()
        return str(tmp_path / 'i'), str(tmp_path / 'm')

    return create


def relative(pairs, images, maps):
    return [(image.removeprefix(images + '/'), mask.removeprefix(maps + '/'))
            for image, mask in pairs]


def refuses(*arguments, **options):
    with pytest.raises(UserError) as caught:
        pair_files(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_any_suffix_in_any_case_and_subfolders(folders):
    images, maps = folders('c.JPG a.jpg s/a.jpeg b.PNG d.tif e.webp .hidden.jpg Thumbs.db x.txt',
                           'a.png b.png c.png s/a.PNG d.bmp e.gif ._a.png classes.json')
    assert relative(pair_files(images, maps), images, maps) == [
        ('a.jpg', 'a.png'), ('b.PNG', 'b.png'), ('c.JPG', 'c.png'), ('d.tif', 'd.bmp'),
        ('e.webp', 'e.gif'), ('s/a.jpeg', 's/a.PNG')]
    assert pair_files(images, None)[0] == (f'{images}/a.jpg', None)


def test_endings_of_label_maps(folders):
    images, maps = folders('a.jpg a_1.jpg', 'a_mask.png a_1_mask.png')
    assert label_map_ending(images, maps) == '_mask.png'
    assert 'have no label map of the same name' in (text := refuses(images, maps))
    assert "set seg_map_suffix='_mask.png'" in text
    assert relative(pair_files(images, maps, label_map_suffixes=('_mask.png',)), images, maps) == [
        ('a.jpg', 'a_mask.png'), ('a_1.jpg', 'a_1_mask.png')]


def test_images_and_label_maps_in_one_folder(folders):
    images, _ = folders('a.png a_mask.png b.png b_mask.png', '')
    assert 'can\'t be told apart' in refuses(images, images)
    pairs = pair_files(images, images, image_suffixes=('.png',), label_map_suffixes=('_mask.png',))
    assert relative(pairs, images, images) == [('a.png', 'a_mask.png'), ('b.png', 'b_mask.png')]


def test_label_maps_below_the_images(folders, tmp_path):
    images, _ = folders('a.jpg masks/a.png', '')
    assert pair_files(images, f'{images}/masks') == [(f'{images}/a.jpg', f'{images}/masks/a.png')]


@pytest.mark.parametrize('images,maps,fragments', [
    ('a.jpg a.JPG b.jpg', 'a.png b.png', ['a.JPG and a.jpg', 'the same name without suffix']),
    ('a.jpg', 'a.png a.bmp', ['a.bmp and a.png']),
    ('a.jpg b.jpg c.jpg', 'a.png', ['2 of the 3 images', 'b.jpg, c.jpg']),
    ('a.jpg', 'a.png b.png', ['1 of the 2 label maps', 'b.png']),
    ('a.jpg b.heic', 'a.png b.png', ['b.heic there has another suffix']),
    ('a.txt', 'a.png', ['no images']), ('', '', ['no images'])])
def test_files_without_a_partner(folders, images, maps, fragments):
    text = refuses(*folders(images, maps))
    assert all(fragment in text for fragment in fragments), text


def test_lists_of_images(folders):
    images, maps = folders('a.jpg s/b.JPG c.v1.jpg d.jpg', 'a.png s/b.png c.v1.png')
    pairs = pair_files(images, maps, names=['s/b', 'c.v1', 'a.jpg'])
    assert relative(pairs, images, maps) == [
        ('s/b.JPG', 's/b.png'), ('c.v1.jpg', 'c.v1.png'), ('a.jpg', 'a.png')]
    assert 'has none.jpg, but there is no such image' in refuses(images, maps, names=['none.jpg'])
    assert '1 of the 1 images' in refuses(images, maps, names=['d'])
