"""Label maps are loaded as MMSegmentation loads them, or raise an error."""

import io

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS
from PIL import Image

from evit_mm.errors import ConfigError, UserError
from evit_mm.segmentation import CheckedLoadAnnotations, check_while_loading


@pytest.fixture
def results(tmp_path):
    """Function that returns the input of a pipeline, for a 4x6 label map of some content."""

    def build(content, mode=None, *, reduce_zero_label=False, label_map=None, size=(4, 6)):
        path = tmp_path / 'map.png'
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(np.asarray(content), mode).save(path)
        return dict(img_path='image.jpg', seg_map_path=str(path), seg_fields=[], ori_shape=size,
                    reduce_zero_label=reduce_zero_label, label_map=label_map)

    return build


def values(*some):
    content = np.zeros((4, 6), np.uint8)
    content.flat[:len(some)] = some
    return content


def refuses(load, inputs, *fragments, error=UserError):
    with pytest.raises(error) as caught:
        load(inputs)
    text = str(caught.value)
    assert all(str(fragment) in text for fragment in fragments), text
    assert '\n' not in text and '0x' not in text
    assert type(caught.value) is error


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 255, 1: 0, 2: 1, 3: 255, 4: 2}, {0: 1, 1: 0}])
def test_loads_what_the_plain_loader_loads(results, reduce_zero_label, label_map):
    content = np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8)
    options = dict(reduce_zero_label=reduce_zero_label, label_map=label_map, size=(64, 96))
    plain = LoadAnnotations()(results(content, **options))
    checked = CheckedLoadAnnotations(num_classes=None)(results(content, **options))
    np.testing.assert_array_equal(checked['gt_seg_map'], plain['gt_seg_map'])
    assert checked['gt_seg_map'].dtype == np.uint8
    assert checked['seg_fields'] == plain['seg_fields'] == ['gt_seg_map']


@pytest.mark.parametrize('content,reduce_zero_label,wrong,valid', [
    (values(149, 255), False, None, None),
    (values(150, 255), True, None, None),
    (values(150), False, '150', '0 to 149 and 255'),
    (values(151, 7, 200, 151), True, '151, 200', '0 to 150 and 255'),
    (values(*range(200, 210)), False, '200, 201, 202, 203, 204 ...', '0 to 149 and 255'),
    (values(149).astype(np.uint16), False, None, None),
    (values().astype(np.uint16) + 300, False, '300', '0 to 149 and 255'),  # 44 in 8 bits
])
def test_errors_name_the_values_of_the_file(results, content, reduce_zero_label, wrong,
                                                    valid):
    inputs = results(content, reduce_zero_label=reduce_zero_label)
    load = CheckedLoadAnnotations(num_classes=150)
    if wrong is None:
        load(inputs)
    else:
        refuses(load, inputs, inputs['seg_map_path'], f'no class: {wrong}; valid are {valid}: ')


def test_advice_for_classes_that_count_from_one(results):
    load = CheckedLoadAnnotations(num_classes=3)
    refuses(load, results(values(1, 2, 3)), 'no class: 3;', 'reduce_zero_label=True')
    refuses(load, results(values(1, 2, 4)), 'no class: 4;')


def test_custom_classes(results):
    """Values of other classes are ignored; values of no class raise an error."""
    label_map = {0: 255, 1: 0, 2: 255, 3: 1}
    load = CheckedLoadAnnotations(num_classes=2)
    loaded = load(results(values(3, 1, 2), label_map=label_map))['gt_seg_map']
    assert loaded.flat[:4].tolist() == [1, 0, 255, 255]
    refuses(load, results(values(4), label_map=label_map), 'no class: 4;', '0 to 3 and 255')


def test_custom_ignored_label(results):
    load = CheckedLoadAnnotations(num_classes=2, ignore_index=9)
    load(results(values(0, 1, 9)))
    refuses(load, results(values(255)), 'no class: 255;', '0 to 1 and 9')


@pytest.mark.parametrize('mode,channels', [('RGB', 3), ('RGBA', 4), ('LA', 2)])
def test_images_with_channels(results, mode, channels):
    image = Image.fromarray(values()).convert(mode)
    inputs = results(np.asarray(image), mode)
    refuses(CheckedLoadAnnotations(num_classes=9), inputs, inputs['seg_map_path'],
            f'{channels} channels')


def test_palettes_and_bits(results):
    image = Image.fromarray(values(1, 2))
    image = image.convert('P')
    image.putpalette([i for i in range(256) for _ in range(3)])
    content = io.BytesIO()
    image.save(content, 'png')
    load = CheckedLoadAnnotations(num_classes=3)
    assert load(results(content.getvalue()))['gt_seg_map'].flat[:2].tolist() == [1, 2]
    assert load(results(values(1) > 0))['gt_seg_map'].flat[:2].tolist() == [1, 0]
    # OpenCV converts palettes to colours, so that the numbers are lost.
    refuses(CheckedLoadAnnotations(num_classes=3, imdecode_backend='cv2'),
            results(content.getvalue()), '3 channels')


def test_maps_of_one_row(results):
    """LoadAnnotations drops sides of length 1."""
    content = np.zeros((1, 6), np.uint8)
    loaded = CheckedLoadAnnotations(num_classes=3)(results(content, size=(1, 6)))
    assert loaded['gt_seg_map'].shape == (1, 6)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('damage', ['truncated', 'empty', 'text'])
def test_damaged_files(results, damage, backend):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (4, 6), np.uint8)).save(file, 'png')
    content = {'truncated': file.getvalue()[:30], 'empty': b'', 'text': b'not an image'}[damage]
    inputs = results(content)
    refuses(CheckedLoadAnnotations(num_classes=9, imdecode_backend=backend), inputs,
            inputs['seg_map_path'], 'is not an image, or is truncated', 'image.jpg')


def test_missing_files(results):
    load = CheckedLoadAnnotations(num_classes=9)
    inputs = results(values())
    refuses(load, {**inputs, 'seg_map_path': 'gone.png'}, 'gone.png', 'image.jpg', 'No such file')
    del inputs['seg_map_path']
    refuses(load, inputs, 'image.jpg', 'data_prefix.seg_map_path', error=ConfigError)


def test_size_of_the_image(results):
    load = CheckedLoadAnnotations(num_classes=9)
    inputs = results(values(), size=(6, 4))
    refuses(load, inputs, inputs['seg_map_path'], 'is 4x6', 'image.jpg is 6x4')
    load({**inputs, 'ori_shape': (4, 6), 'img_shape': (8, 12)})  # resized before
    del inputs['ori_shape']
    load(inputs)  # the pipeline loads no image


def test_contradictory_reduce_zero_label(results):
    with pytest.warns(UserWarning, match='reduce_zero_label'):
        load = CheckedLoadAnnotations(num_classes=9, reduce_zero_label=True)
    load(results(values(), reduce_zero_label=True))
    refuses(load, results(values()), 'reduce_zero_label=True', 'False', error=ConfigError)


LOAD = dict(type='LoadAnnotations')


def dataset(kind='ADE20KDataset', pipeline=(LOAD,), **more):
    return dict(type=kind, data_prefix=dict(img_path='a'), pipeline=list(pipeline), **more)


def with_checks(dataset, scope='mmseg', **model):
    config = Config(dict(default_scope=scope, model=model, train_dataloader=dict(dataset=dataset)))
    check_while_loading(config)
    return config.train_dataloader.dataset


@pytest.mark.parametrize('kind', ['LoadAnnotations', 'mmseg.LoadAnnotations', LoadAnnotations])
def test_checked_loader_replaces_the_plain_one(kind):
    loader = with_checks(dataset(pipeline=[dict(type=kind, imdecode_backend='cv2')])).pipeline[0]
    init_default_scope('mmseg')
    built = TRANSFORMS.build(loader)
    assert type(built) is CheckedLoadAnnotations and built.imdecode_backend == 'cv2'
    assert built.num_classes == 150 and built.ignore_index == 255


def test_other_loaders_are_kept():
    class Custom(LoadAnnotations):
        pass

    for kind in ('LoadBiomedicalAnnotation', 'mmdet.LoadAnnotations', 'MyLoadAnnotations', Custom):
        assert with_checks(dataset(pipeline=[dict(type=kind)])).pipeline == [dict(type=kind)]
    assert with_checks(dataset(), scope='mmdet').pipeline == [LOAD]
    assert with_checks(dataset(_scope_='mmseg'), scope='mmdet').pipeline != [LOAD]


def test_loaders_in_nested_transforms_and_datasets():
    augmented = dict(type='TestTimeAug', transforms=[[dict(type='RandomFlip')], [LOAD]])
    outer = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[dataset(), dataset('BaseSegDataset', [augmented])]))
    first, second = with_checks(outer, decode_head=dict(num_classes=7)).dataset.datasets
    assert first.pipeline[0]['num_classes'] == 150
    assert second.pipeline[0].transforms[1][0] == dict(
        type='evit_mm.segmentation.labels.CheckedLoadAnnotations', num_classes=7, ignore_index=255)


@pytest.mark.parametrize('kind,metainfo,expected', [
    ('ADE20KDataset', dict(classes=('wall', 'sky')), 2), (BaseSegDataset, dict(classes=['a']), 1),
    (ADE20KDataset, None, 150), ('NoSuchDataset', None, None)])
def test_number_of_classes(kind, metainfo, expected):
    loader = with_checks(dataset(kind, metainfo=metainfo)).pipeline[0]
    assert loader['num_classes'] == expected
    # The config that a run saved has the checked loader already.
    loader.update(num_classes=99)
    again = with_checks(dataset(kind, [loader], metainfo=metainfo)).pipeline[0]
    assert again['num_classes'] == expected


@pytest.mark.parametrize('model,expected', [
    (dict(decode_head=dict(ignore_index=3)), 3),
    (dict(decode_head=[dict(ignore_index=3), dict(ignore_index=4)]), 4),
    (dict(decode_head=dict(ignore_index=None)), 255),
    (dict(type='SegTTAModel', module=dict(decode_head=dict(ignore_index=5))), 5)])
def test_ignored_label_of_the_head(model, expected):
    assert with_checks(dataset(), **model).pipeline[0]['ignore_index'] == expected
