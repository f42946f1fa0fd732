"""The written files are what readers of COCO and ADE20K expect."""

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from evit_mm.data import SCENE_CLASSES, SHAPE_CLASSES
from evit_mm.data.synthetic.scenes import draw_scene
from evit_mm.data.synthetic.shapes import draw_shapes


@pytest.fixture(scope='module')
def coco(coco_root):
    return COCO(str(coco_root / 'annotations' / 'instances_train2017.json'))


class TestCocoLayout:
    def test_files(self, coco_root, snapshot):
        names = set(snapshot(coco_root))
        assert names == {
            'shapes.json', 'annotations/instances_train2017.json',
            'annotations/instances_val2017.json',
            *(f'train2017/{number:012d}.jpg' for number in range(1, 12)),
            *(f'val2017/{number:012d}.jpg' for number in range(1, 5))}

    def test_fields(self, coco):
        content = coco.dataset
        assert set(content) == {'info', 'licenses', 'images', 'annotations', 'categories'}
        assert content['categories'] == [
            {'supercategory': 'shape', 'id': number, 'name': name}
            for number, name in enumerate(SHAPE_CLASSES, start=1)]
        assert [image['id'] for image in content['images']] == list(range(1, 12))
        assert [one['id'] for one in content['annotations']] == list(
            range(1, len(content['annotations']) + 1))
        for one in content['annotations']:
            assert set(one) == {'segmentation', 'area', 'iscrowd', 'image_id', 'bbox',
                                'category_id', 'id'}
            assert one['image_id'] in coco.imgs and one['category_id'] in coco.cats

    def test_image_sizes_are_recorded_and_vary(self, coco, coco_root, small):
        area = np.prod(small['image_size'])
        shapes = set()
        for image in coco.dataset['images']:
            pixels = cv2.imread(str(coco_root / 'train2017' / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert pixels.shape[0] * pixels.shape[1] == pytest.approx(area, rel=0.03)
            shapes.add(pixels.shape[:2])
        assert len(shapes) > 4
        assert any(height > width for height, width in shapes)
        assert any(height < width for height, width in shapes)

    def test_every_image_has_an_object(self, coco):
        for image_id in coco.imgs:
            ordinary = coco.getAnnIds(image_id, iscrowd=False)
            assert 1 <= len(ordinary) <= 8


class TestCocoAnnotations:
    def test_mask_box_and_area_agree(self, coco):
        for one in coco.dataset['annotations']:
            mask = coco.annToMask(one).astype(bool)
            rows, columns = np.nonzero(mask)
            x, y, width, height = one['bbox']
            assert one['area'] == mask.sum() > 0
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert x + width <= mask.shape[1] and y + height <= mask.shape[0]

    def test_masks_are_visible_pixels_and_never_overlap(self, coco, small):
        for index, image_id in enumerate(coco.imgs):
            _, instances = draw_shapes(small['image_size'], small['seed'], 'train', index)
            annotations = coco.loadAnns(coco.getAnnIds(image_id))
            assert len(instances) == len(annotations)
            for instance, one in zip(instances, annotations, strict=True):
                assert instance.category_id == one['category_id']
                np.testing.assert_array_equal(coco.annToMask(one), instance.mask)
            assert sum(coco.annToMask(one).astype(int) for one in annotations).max() == 1

    def test_crowd_is_an_uncompressed_rle_over_many_shapes(self, coco):
        crowds = [one for one in coco.dataset['annotations'] if one['iscrowd']]
        assert {one['image_id'] for one in crowds} == {3, 11}
        for one in crowds:
            image = coco.imgs[one['image_id']]
            assert one['segmentation']['size'] == [image['height'], image['width']]
            counts = one['segmentation']['counts']
            assert all(type(count) is int for count in counts)
            assert sum(counts) == image['height'] * image['width']
            others = coco.loadAnns(coco.getAnnIds(one['image_id'], iscrowd=False))
            assert others
            assert not any((coco.annToMask(one) & coco.annToMask(other)).any()
                           for other in others)

    def test_tiny_and_small_objects_exist(self, coco):
        ordinary = [one for one in coco.dataset['annotations'] if not one['iscrowd']]
        assert any(max(one['bbox'][2:]) < 8 for one in ordinary)
        assert any(one['area'] < 32 * 32 for one in ordinary)

    def test_mmdet_loads_the_dataset(self, coco, coco_root):
        from mmdet.datasets import CocoDataset
        from mmengine.registry import init_default_scope

        init_default_scope('mmdet')

        dataset = CocoDataset(
            data_root=str(coco_root), ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'), metainfo=dict(classes=SHAPE_CLASSES),
            pipeline=[dict(type='LoadImageFromFile'),
                      dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                      dict(type='Resize', scale=(64, 64), keep_ratio=True),
                      dict(type='PackDetInputs')])
        assert len(dataset) == 11
        counts = [len(dataset[index]['data_samples'].gt_instances)
                  for index in range(len(dataset))]
        ignored = [len(dataset[index]['data_samples'].ignored_instances)
                   for index in range(len(dataset))]
        assert sum(counts) == len(coco.getAnnIds(iscrowd=False))
        assert sum(ignored) == 2
        labels = {int(label) for index in range(len(dataset))
                  for label in dataset[index]['data_samples'].gt_instances.labels}
        assert labels <= set(range(len(SHAPE_CLASSES)))


class TestAdeLayout:
    def test_files(self, ade_root, snapshot):
        expected = {'shapes.json'}
        for split, folder, count in (('train', 'training', 11), ('val', 'validation', 4)):
            for number in range(1, count + 1):
                expected.add(f'images/{folder}/ADE_{split}_{number:08d}.jpg')
                expected.add(f'annotations/{folder}/ADE_{split}_{number:08d}.png')
        assert set(snapshot(ade_root)) == expected

    def test_label_maps_match_their_images(self, ade_root):
        seen = set()
        for path in (ade_root / 'images').rglob('*.jpg'):
            image = cv2.imread(str(path))
            label_path = ade_root / 'annotations' / path.parent.name / f'{path.stem}.png'
            labels = cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
            assert labels.dtype == np.uint8 and labels.ndim == 2
            assert labels.shape == image.shape[:2]
            values = set(np.unique(labels).tolist())
            assert 0 in values and len(values) >= 4
            assert values <= {0, *SCENE_CLASSES}
            seen |= values
        assert seen == {0, *SCENE_CLASSES}

    def test_label_maps_are_stored_losslessly(self, ade_root, small):
        image, labels = draw_scene(small['image_size'], small['seed'], 'val', 1)
        stored = cv2.imread(str(ade_root / 'annotations/validation/ADE_val_00000002.png'),
                            cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, labels)
        assert image.shape == (*labels.shape, 3)

    def test_mmseg_loads_the_dataset_with_the_same_class_names(self, ade_root):
        from mmengine.registry import init_default_scope
        from mmseg.datasets import ADE20KDataset

        init_default_scope('mmseg')

        dataset = ADE20KDataset(
            data_root=str(ade_root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            pipeline=[dict(type='LoadImageFromFile'),
                      dict(type='LoadAnnotations', reduce_zero_label=True),
                      dict(type='PackSegInputs')])
        assert len(dataset) == 11
        names = dataset.metainfo['classes']
        assert len(names) == 150
        assert all(names[value - 1].strip() == name for value, name in SCENE_CLASSES.items())
        loaded = dataset[0]['data_samples'].gt_sem_seg.data
        assert set(loaded.unique().tolist()) <= {255, *(value - 1 for value in SCENE_CLASSES)}
