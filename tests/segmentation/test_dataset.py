"""Label maps with classes of one's own reach the model as they are numbered."""

import numpy as np
import pytest
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS
from PIL import Image, ImageOps

from evit_mm.errors import ConfigError, UserError
from evit_mm.segmentation import CheckedLoadAnnotations, LabelMapDataset

CLASSES = ('nothing', 'crack', 'rust')
ROWS = np.array([[0, 1, 2], [2, 2, 255]], np.uint8)
CHECKED = [dict(type='LoadImageFromFile'),
           dict(type='CheckedLoadAnnotations', num_classes=3), dict(type='PackSegInputs')]


@pytest.fixture
def folder(tmp_path):
    """A folder with an image and its label map; the function adds more."""
    init_default_scope('mmseg')

    def add(name, labels=ROWS, suffix='.png', map_suffix='.png', **options):
        for kind, content, ending in (('images', np.stack([labels] * 3, -1), suffix),
                                      ('masks', labels, map_suffix)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(content).save(tmp_path / kind / f'{name}{ending}',
                                          **options if kind == 'images' else {})
        return tmp_path

    add('a')
    return add


def build(root, *, pipeline=CHECKED, classes=CLASSES, **options):
    return DATASETS.build(ConfigDict(
        type='LabelMapDataset', data_root=str(root), pipeline=pipeline,
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        **{'metainfo': dict(classes=classes), **options}))


def labels(dataset, index=0):
    return dataset[index]['data_samples'].gt_sem_seg.data[0].numpy()


@pytest.mark.parametrize('classes', [CLASSES, ('sky', 'road', 'car')])
def test_labels_are_the_numbers_of_the_files(folder, classes):
    """Also where ADE20K has classes of these names."""
    dataset = build(folder('b', ROWS[::-1]), classes=classes)
    assert len(dataset) == 2 and dataset.metainfo['classes'] == classes
    assert len(dataset.metainfo['palette']) == 3
    np.testing.assert_array_equal(labels(dataset, 0), ROWS)
    np.testing.assert_array_equal(labels(dataset, 1), ROWS[::-1])
    plain = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
             dict(type='PackSegInputs')]
    np.testing.assert_array_equal(labels(build(folder('b'), pipeline=plain)), ROWS)


def test_files_of_all_suffixes(folder):
    for name, suffix in (('b', '.JPG'), ('c', '.jpeg'), ('d', '.tif')):
        root = folder(name, suffix=suffix)
    dataset = build(root)
    assert [dataset.get_data_info(i)['img_path'].rpartition('/')[2] for i in range(4)] \
        == ['a.png', 'b.JPG', 'c.jpeg', 'd.tif']
    assert len(build(root, img_suffix=['.jpg', '.jpeg'], seg_map_suffix='.png',
                     ann_file=str(listed(root, 'b', 'c.jpeg')))) == 2


def listed(root, *names):
    path = root / 'list.txt'
    path.write_text('\n'.join(names) + '\n\n')
    return path


def test_lists_of_images(folder):
    root = folder('b')
    folder('c')
    (root / 'masks' / 'c.png').unlink()
    listed(root, 'b', 'a.png')
    dataset = build(root, ann_file='list.txt')
    assert [dataset.get_data_info(i)['img_path'] for i in range(2)] \
        == [str(root / 'images' / name) for name in ('b.png', 'a.png')]
    with pytest.raises(UserError, match='1 of the 3 images .* have no label map .*: c.png'):
        build(root)
    listed(root)
    with pytest.raises(UserError, match='the list of images .* is empty'):
        build(root, ann_file='list.txt')


def test_images_without_label_maps(folder):
    root = folder('b')
    (root / 'masks' / 'b.png').unlink()
    dataset = build(root, pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')])
    assert len(dataset) == 2 and 'seg_map_path' not in dataset.get_data_info(0)


def test_zero_is_unlabelled(folder):
    dataset = build(folder('a'), classes=('crack', 'rust'), reduce_zero_label=True)
    np.testing.assert_array_equal(labels(dataset), [[255, 0, 1], [1, 1, 255]])


def test_numbers_of_the_classes(folder):
    root = folder('a', np.array([[0, 255], [128, 0]], np.uint8))
    dataset = build(root, mask_values=(0, 255, 128))
    np.testing.assert_array_equal(labels(dataset), [[0, 1], [2, 0]])
    with pytest.raises(UserError, match='no class: 128; valid are 0 and 255'):
        build(root, mask_values=(0, 255), classes=('a', 'b'), pipeline=[
            CHECKED[0], dict(CHECKED[1], num_classes=2), CHECKED[2]])[0]
    ignored = build(root, mask_values=(0, 128), classes=('a', 'b'))
    np.testing.assert_array_equal(labels(ignored), [[0, 255], [1, 0]])


def test_classes_of_another_type(folder):
    of_ade = dict(classes_of=dict(type='ADE20KDataset'))
    dataset = build(folder('a'), metainfo=of_ade)
    assert dataset.metainfo['classes'] == ADE20KDataset.METAINFO['classes']
    assert dataset.metainfo['palette'] == ADE20KDataset.METAINFO['palette']
    assert dataset.reduce_zero_label and dataset.label_map is None
    assert not build(folder('a'), metainfo=of_ade, reduce_zero_label=False).reduce_zero_label
    own = build(folder('a'), metainfo=dict(of_ade, classes=CLASSES))
    assert own.metainfo['classes'] == CLASSES and not own.reduce_zero_label
    # Another type in its place, with the rest of the config as it is.
    other = DATASETS.build(dict(
        type='BaseSegDataset', metainfo=dict(of_ade, classes=CLASSES), img_suffix='.png',
        data_root=str(folder('a')), data_prefix=dict(img_path='images', seg_map_path='masks')))
    assert len(other) == 1


def test_classes_from_a_file(folder):
    root = folder('a')
    (root / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    assert build(root, classes=str(root / 'classes.txt')).metainfo['classes'] == CLASSES


@pytest.mark.parametrize('options,fragment', [
    (dict(metainfo=None), 'has no classes'), (dict(classes='none.txt'), 'no such file: none.txt'),
    (dict(classes=('a', 'b', 'a')), "'a' twice"),
    (dict(metainfo=dict(classes=CLASSES, palette=[[0, 0, 0]])), 'palette of 1 colours'),
    (dict(mask_values=(0, 1)), '3 different numbers'),
    (dict(mask_values=(0, 1, 1)), '3 different numbers'),
    (dict(mask_values=(0, 1, 300)), '3 different numbers'),
    (dict(mask_values=(1, 2, 3), reduce_zero_label=True), 'two ways to number')])
def test_errors_of_the_config(folder, options, fragment):
    with pytest.raises(ConfigError) as caught:
        build(folder('a'), **options)
    assert fragment in str(caught.value) and '\n' not in str(caught.value)


def test_missing_folders(tmp_path):
    init_default_scope('mmseg')
    with pytest.raises(UserError, match='no such folder: .*images'):
        build(tmp_path)
    assert isinstance(build(tmp_path, lazy_init=True), LabelMapDataset)


@pytest.mark.parametrize('orientation,drawn', [
    *((orientation, 'displayed') for orientation in range(1, 9)),
    *((orientation, 'stored') for orientation in (1, 5, 6, 7, 8))])  # of others, sizes don't tell
def test_label_maps_stay_on_their_pixels(folder, orientation, drawn):
    """EXIF turns the image; its numbers are those of the label map, in both ways to draw that."""
    values = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = folder('a', values, suffix='.png', exif=exif)
    if drawn == 'displayed':
        with Image.open(root / 'images' / 'a.png') as image:
            shown = ImageOps.exif_transpose(image).convert('L')
        shown.save(root / 'masks' / 'a.png')
    sample = build(root)[0]
    np.testing.assert_array_equal(sample['inputs'][0].numpy(),
                                  sample['data_samples'].gt_sem_seg.data[0].numpy())


def test_label_maps_with_an_orientation_of_their_own(folder):
    """Saved by an editor that copied the photo's EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 3
    root = folder('a', exif=exif)
    Image.fromarray(ROWS).save(root / 'masks' / 'a.png', exif=exif)
    np.testing.assert_array_equal(labels(build(root)), np.rot90(ROWS, 2))


def test_images_that_are_not_turned(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    root = folder('a', exif=exif)
    pipeline = [dict(type='LoadImageFromFile', color_type='color_ignore_orientation'), *CHECKED[1:]]
    np.testing.assert_array_equal(labels(build(root, pipeline=pipeline)), ROWS)
    Image.fromarray(ROWS.T).save(root / 'masks' / 'a.png')
    with pytest.raises(UserError, match='is 3x2 .*, but its image .* is 2x3'):
        build(root, pipeline=pipeline)[0]


def test_jpeg_label_maps(folder):
    root = folder('a', map_suffix='.jpg')
    (root / 'masks' / 'a.png').unlink()
    load = CheckedLoadAnnotations(num_classes=3)
    with pytest.raises(UserError, match='a.jpg is a JPEG file'):
        load(build(root).get_data_info(0))
