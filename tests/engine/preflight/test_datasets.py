"""The files of a dataset exist, and the model has as many classes."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from evit_mm.engine import preflight
from evit_mm.errors import ConfigError, UserError


def test_a_valid_dataset_passes(config, copy):
    preflight.check_files(config.train_dataloader, scope='mmdet')
    init_default_scope('mmdet')
    dataset = preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset),
                                      'train')
    assert len(dataset) == 8
    preflight.check_classes(MODELS.build(config.model), dataset, 'train')


def test_heads_that_do_not_count_the_classes(config, copy):
    """Semantic heads and panoptic datasets have class counts of their own."""
    init_default_scope('mmdet')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    model = MODELS.build(config.model)
    model.semantic_head = torch.nn.Module()
    model.semantic_head.num_classes = 183
    preflight.check_classes(model, dataset, 'train')
    dataset._metainfo['thing_classes'] = ['circle']
    model.bbox_head.num_classes = 1
    preflight.check_classes(model, dataset, 'train')


def test_missing_images(config, copy):
    third, fourth = sorted((copy / 'train2017').iterdir())[2:4]
    third.unlink()
    fourth.write_bytes(b'')
    init_default_scope('mmdet')
    with pytest.raises(UserError, match='2 of the 8 images of the train dataset are missing or '
                                        'empty.*000000000003'):
        preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset), 'train')


def test_no_usable_images(config, rewrite):
    rewrite(lambda content: content.update(annotations=[]))
    init_default_scope('mmdet')
    with pytest.raises(UserError, match='the train dataset has no usable images'):
        preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset), 'train')


def test_annotations_that_break_the_reader(config, rewrite):
    rewrite(lambda content: content['annotations'][0].pop('image_id'))
    init_default_scope('mmdet')
    with pytest.raises(UserError, match="the train dataset can.t be read: KeyError: 'image_id'"):
        preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset), 'train')


def test_heads_with_another_number_of_classes(repository, config, copy):
    init_default_scope('mmdet')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    for name in ('retinanet', 'mask_rcnn'):
        other = Config.fromfile(repository / 'configs' / f'{name}_evit_m0_coco.py')
        with pytest.raises(ConfigError, match=r'80 classes.*has 4.*num_classes=4'):
            preflight.check_classes(MODELS.build(other.model), dataset, 'train')


def built(segmentor):
    init_default_scope('mmseg')
    config = segmentor.train_dataloader.dataset
    return preflight.built_dataset(lambda: DATASETS.build(config), 'train')


def test_missing_label_maps(segmentor, ade):
    dataset = segmentor.train_dataloader.dataset
    assert len(built(segmentor)) == 8
    third, fourth = sorted((ade / 'annotations' / 'training').iterdir())[2:4]
    third.unlink()
    fourth.write_bytes(b'')
    with pytest.raises(UserError) as caught:
        built(segmentor)
    assert str(caught.value).startswith(
        f'2 of the 8 label maps of the train dataset are missing or empty, the first is {third} '
        f'of the image {ade}/images/training/{third.stem}.jpg: ')
    # A subset without them, and a test set whose labels are not used.
    dataset.indices = 2
    assert len(built(segmentor)) == 2
    del dataset['indices'], dataset.pipeline[1]
    assert len(built(segmentor)) == 8


def test_label_maps_in_wrappers_and_lists(segmentor, ade):
    dataset = segmentor.train_dataloader.dataset
    (ade / 'train.txt').write_text('ADE_train_00000001\nADE_train_00000002\n')
    dataset.ann_file = 'train.txt'
    dataset.seg_map_suffix = '_labels.png'
    segmentor.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=dict(
        type='ConcatDataset', datasets=[dataset, {**dataset, 'seg_map_suffix': '.png'}]))
    with pytest.raises(UserError, match=r'2 of the 4 label maps.*00000001_labels\.png.*suffix'):
        built(segmentor)


def test_labels_inside_test_time_augmentation(segmentor, ade):
    segmentor.train_dataloader.dataset.pipeline[1:] = [dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
    assert len(built(segmentor)) == 8
    next((ade / 'annotations' / 'training').iterdir()).unlink()
    with pytest.raises(UserError, match='1 of the 8 label maps'):
        built(segmentor)


def test_test_sets_without_labels(segmentor):
    dataset = segmentor.train_dataloader.dataset
    dataset.update(test_mode=True, data_prefix=dict(_delete_=True, img_path='images/training'))
    del dataset.data_prefix['_delete_'], dataset.pipeline[1]
    assert len(built(segmentor)) == 8


def test_no_images_for_segmentation(segmentor):
    segmentor.train_dataloader.dataset.indices = []
    with pytest.raises(UserError, match='no usable images.*list of images is empty'):
        built(segmentor)
