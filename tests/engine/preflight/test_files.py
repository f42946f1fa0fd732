"""Missing files are reported before anything is built, with how to get them."""

import shutil

import pytest
from mmengine.config import Config
from mmseg.datasets import ADE20KDataset

from evit_mm.engine import config as configure
from evit_mm.engine import preflight
from evit_mm.errors import ConfigError, UserError


def fails(config, *fragments, error=UserError):
    with pytest.raises(error) as caught:
        preflight.check_files(config.train_dataloader, scope='mmdet')
    text = str(caught.value)
    assert all(fragment in text for fragment in fragments), text
    assert '\n' not in text


def test_missing_data_says_how_to_get_it(config, copy):
    shutil.rmtree(copy / 'train2017')
    fails(config, f'no such folder: {copy}/train2017', 'cocodataset.org', '--data-root',
          'evit-mm data shapes')
    (copy / 'train2017').mkdir()
    fails(config, 'is empty')
    (copy / 'annotations' / 'instances_train2017.json').unlink()
    fails(config, 'no such file', 'instances_train2017.json')
    shutil.rmtree(copy)
    fails(config, f'no such folder: {copy}')


def test_unknown_missing_and_reordered_categories(config, rewrite):
    def rename(content):
        content['categories'][1]['name'] = 'pentagon'

    rewrite(rename)
    fails(config, 'categories that the config does not have: pentagon', 'num_classes=4',
          error=ConfigError)
    rewrite(lambda content: content['categories'].pop(1))
    fails(config, "['square']", 'num_classes=3', error=ConfigError)

    def reverse(content):
        names = ['star', 'triangle', 'square', 'circle']
        content['categories'] = [dict(id=i + 1, name=name) for i, name in enumerate(names)]

    rewrite(reverse)
    fails(config, 'another order', "('star', 'triangle', 'square', 'circle')", error=ConfigError)


def test_unknown_categories_on_request(config, rewrite):
    """mmdet trains on some of the categories where the config lists only these."""
    rewrite(lambda content: content['categories'].append(dict(id=5, name='pentagon')))
    fails(config, 'pentagon', '--ignore-unknown-categories', error=ConfigError)
    preflight.check_files(config.train_dataloader, ignore_unknown_categories=True,
                          scope='mmdet')


@pytest.mark.parametrize('change', [
    dict(data_root='s3://bucket/coco'), dict(backend_args=dict(backend='petrel')),
    dict(ann_file='http://127.0.0.1/train.json')])
def test_remote_data_is_left_to_its_backend(config, change):
    config.train_dataloader.dataset.update(change)
    preflight.check_files(config.train_dataloader, scope='mmdet')


def test_classes_from_a_file(config, copy, tmp_path):
    (tmp_path / 'classes.txt').write_text('circle\nsquare\ntriangle\nstar\n')
    config.train_dataloader.dataset.metainfo = dict(classes=str(tmp_path / 'classes.txt'))
    preflight.check_files(config.train_dataloader, scope='mmdet')


def test_other_json_formats_are_not_read_as_coco(config, copy):
    config.train_dataloader.dataset.type = 'LVISV1Dataset'
    (copy / 'annotations' / 'instances_train2017.json').write_text('[]')
    preflight.check_files(config.train_dataloader, scope='mmdet')


def test_coco_configs_reject_other_categories(repository, copy):
    config = Config.fromfile(repository / 'configs' / 'retinanet_evit_m0_coco.py')
    configure.set_data_root(config, copy)
    fails(config, 'circle, square, triangle, star', error=ConfigError)


@pytest.mark.parametrize('content,fragment', [
    ('', 'empty'), ('{"images": []}', 'no list of categories'), ('no json', 'no list'),
    ('{"categories": [{"id": 1, "na', 'truncated'), ('{"categories": [1]}', 'not a COCO')])
def test_files_that_are_not_annotations(config, copy, content, fragment):
    (copy / 'annotations' / 'instances_train2017.json').write_text(content)
    fails(config, 'instances_train2017.json', fragment)


def misses(segmentor, *fragments):
    with pytest.raises(UserError) as caught:
        preflight.check_files(segmentor.train_dataloader, scope='mmseg')
    text = str(caught.value)
    assert all(str(fragment) in text for fragment in fragments), text
    assert '\n' not in text


def test_segmentation_data(segmentor, ade):
    for dataloader in (segmentor.train_dataloader, segmentor.val_dataloader):
        preflight.check_files(dataloader, scope='mmseg')
    labels = ade / 'annotations' / 'training'
    for path in labels.iterdir():
        path.unlink()
    misses(segmentor, labels, 'is empty', 'sceneparsing.csail.mit.edu')
    labels.rmdir()
    misses(segmentor, f'no such folder: {labels}')
    shutil.rmtree(ade)
    misses(segmentor, f'no such folder: {ade}', 'sceneparsing.csail.mit.edu')


@pytest.mark.parametrize('kind', ['ADE20KDataset', 'mmseg.ADE20KDataset', ADE20KDataset])
def test_images_of_another_suffix(segmentor, ade, kind):
    folder = ade / 'images' / 'training'
    (folder / '.hidden.jpg').touch()
    for path in folder.glob('A*.jpg'):
        path.rename(path.with_suffix('.jpeg'))
    segmentor.train_dataloader.dataset.type = kind
    misses(segmentor, f"no file in {folder} ends in '.jpg'", "the 8 files there end in '.jpeg'",
           'img_suffix')
    segmentor.train_dataloader.dataset.img_suffix = '.jpeg'
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')


def test_images_in_inner_folders(segmentor, ade):
    folder = ade / 'images' / 'training'
    folder.rename(ade / 'inner')
    folder.mkdir()
    (ade / 'inner').rename(folder / 'inner')
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')


def test_lists_of_images(segmentor, ade):
    """A list may be a file, or a folder, which stands for all of its images."""
    dataset = segmentor.train_dataloader.dataset
    dataset.ann_file = 'train.txt'
    misses(segmentor, f'no such file: {ade / "train.txt"}')
    (ade / 'train.txt').write_text('\n \n')
    misses(segmentor, 'the list of images', ade / 'train.txt', 'is empty')
    (ade / 'train.txt').write_text('ADE_train_00000001\n')
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')
    dataset.ann_file = 'annotations/training'
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')


def test_labels_that_are_not_used(segmentor, ade):
    shutil.rmtree(ade / 'annotations')
    misses(segmentor, f'no such folder: {ade / "annotations/training"}')
    del segmentor.train_dataloader.dataset.pipeline[1]
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')


def test_wrapped_and_remote_segmentation_data(segmentor, ade):
    inner = segmentor.train_dataloader.dataset
    segmentor.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[inner]))
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')
    shutil.rmtree(ade)
    misses(segmentor, f'no such folder: {ade}')
    wrapped = segmentor.train_dataloader.dataset.dataset.datasets[0]
    wrapped.update(data_root=None, data_prefix=dict(img_path='s3://a', seg_map_path='s3://b'))
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')


@pytest.mark.parametrize('kind', ['NoSuchDataset', 'nosuch.Dataset'])
def test_unknown_types_are_left_to_the_construction(segmentor, kind):
    segmentor.train_dataloader.dataset.type = kind
    preflight.check_files(segmentor.train_dataloader, scope='mmseg')
