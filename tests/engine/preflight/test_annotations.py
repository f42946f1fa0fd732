"""The COCO files of a config are checked before a run, and repaired copies take their place."""

import json
import shutil
from pathlib import Path

import pytest

from evit_mm.engine import preflight
from evit_mm.engine.preflight import annotations, findings
from evit_mm.errors import ConfigError, UserError


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    texts = []
    for module in (annotations, findings):
        monkeypatch.setattr(module, 'print_log', lambda text, **_: texts.append(text))
    return texts


@pytest.fixture
def val(copy):
    """Function that changes the annotation file of the validation."""
    path = copy / 'annotations' / 'instances_val2017.json'

    def run(change, path=path):
        content = json.loads((copy / 'annotations' / 'instances_val2017.json').read_text())
        change(content)
        path.write_text(json.dumps(content))
        return path

    return run


def number_from_zero(content):
    for n, entry in enumerate(content['annotations']):
        entry['id'] = n


def read(path):
    return json.loads(Path(path).read_text())


def check(config, split='val', **options):
    preflight.check_annotations(config, split, **options)


def refused(config, *fragments, split='val', error=UserError, **options):
    with pytest.raises(error) as caught:
        check(config, split, **options)
    text = str(caught.value)
    assert all(str(fragment) in text for fragment in fragments), text
    assert '\n' not in text


def test_sound_files_stay_in_place(config, copy, tmp_path, said):
    before = config.to_dict()
    for split in ('train', 'val', 'test'):
        check(config, split, repaired=tmp_path / 'repaired')
    assert config.to_dict() == before
    assert not (tmp_path / 'repaired').exists()
    assert said[0].startswith(f'train: {copy}/annotations/instances_train2017.json: 8 images, ')
    assert len(said) == 3


def test_repaired_copies_take_the_place_of_both(config, val, tmp_path, said):
    val(number_from_zero)
    refused(config, 'has to be repaired', '--repair')
    check(config, repaired=tmp_path / 'repaired')
    dataset, evaluator = config.val_dataloader.dataset, config.val_evaluator
    assert dataset.ann_file == evaluator.ann_file
    assert dataset.ann_file.startswith(str(tmp_path / 'repaired' / 'instances_val2017-'))
    content = read(dataset.ann_file)
    assert min(entry['id'] for entry in content['annotations']) == 1
    assert [path.name for path in (tmp_path / 'repaired').iterdir()] == [
        dataset.ann_file.rpartition('/')[2]]
    assert any('numbered from 1' in text for text in said)
    check(config)  # the copy needs no repair


def test_files_of_one_name_get_copies_of_their_own(config, val, copy, tmp_path):
    val(number_from_zero)
    shutil.copytree(copy, tmp_path / 'other')
    check(config, repaired=tmp_path / 'repaired')
    config.test_dataloader.dataset.data_root = str(tmp_path / 'other') + '/'
    config.test_evaluator.ann_file = str(tmp_path / 'other/annotations/instances_val2017.json')
    check(config, 'test', repaired=tmp_path / 'repaired')
    assert config.test_dataloader.dataset.ann_file != config.val_dataloader.dataset.ann_file


def test_invalid_objects(config, copy, rewrite, tmp_path, said):
    def damage(content):
        content['annotations'][0]['bbox'] = None
        content['annotations'][0]['segmentation'] = []

    rewrite(damage)
    refused(config, 'instances_train2017.json', 'no bbox', '--skip-invalid-objects', split='train')
    check(config, 'train', skip_invalid=True, repaired=tmp_path)
    content = read(config.train_dataloader.dataset.ann_file)
    assert all(entry['bbox'] for entry in content['annotations'])
    assert 'left out: 1 without a valid bbox' in said[-2]


def test_masks_are_needed_where_they_are_loaded_or_evaluated(config, val, tmp_path):
    val(lambda content: content['annotations'][0].update(segmentation=[]))
    check(config)
    config.val_evaluator.metric = ['bbox', 'segm']
    refused(config, 'no valid segmentation')
    config.val_evaluator.metric = 'bbox'
    config.val_dataloader.dataset.pipeline[2].with_mask = True
    refused(config, 'no valid segmentation')


def test_categories_of_one_name(config, rewrite, tmp_path):
    """The order counts without the category that is left out."""
    def add_group(content):
        content['categories'].insert(0, dict(id=9, name='star'))

    rewrite(add_group)
    preflight.check_files(config.train_dataloader, scope='mmdet')
    check(config, 'train', repaired=tmp_path)
    config.train_dataloader.dataset.update(
        ann_file='annotations/instances_train2017.json',
        metainfo=dict(classes=('star', 'circle', 'square', 'triangle')))
    preflight.check_files(config.train_dataloader, scope='mmdet')
    refused(config, 'another order', split='train', error=ConfigError, repaired=tmp_path)


def test_small_images_that_a_training_leaves_out(config, copy, said):
    config.train_dataloader.dataset.filter_cfg = dict(min_size=1000)
    refused(config, 'in images smaller than 1000 pixels', split='train')


# Evaluators.

def test_evaluator_of_other_images(config, val, copy):
    def rename(content):
        for image in content['images']:
            image['file_name'] = 'other-' + image['file_name']

    other = copy / 'annotations' / 'other.json'
    config.val_evaluator.ann_file = str(other)
    refused(config, f'val_evaluator reads {other}, which does not exist',
            'instances_val2017.json', error=ConfigError)
    val(rename, other)
    refused(config, f'val_evaluator reads {other}', 'other images', error=ConfigError)

    def renumber(content):
        for entry in content['images']:
            entry['id'] += 1000
        for entry in content['annotations']:
            entry['image_id'] += 1000

    val(renumber, other)
    config.val_evaluator = [dict(type='DumpDetResults', out_file_path='a.pkl'),
                            config.val_evaluator]
    refused(config, 'other images', error=ConfigError)


def test_evaluator_with_a_file_of_its_own_is_repaired_too(config, val, copy, tmp_path, said):
    other = val(number_from_zero, copy / 'annotations' / 'other.json')
    config.val_evaluator.ann_file = str(other)
    refused(config, 'other.json has to be repaired')
    check(config, repaired=tmp_path / 'repaired')
    assert 'repaired' in config.val_evaluator.ann_file
    assert config.val_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'
    assert any('they list the same images' in text for text in said)
    # Both get the same new ids.
    def use_texts(content):
        for image in content['images']:
            image['id'] = f'image-{image["id"]}'
        for entry in content['annotations']:
            entry['image_id'] = f'image-{entry["image_id"]}'

    val(use_texts, other)
    val(use_texts)
    config.val_evaluator.ann_file = str(other)
    check(config, repaired=tmp_path / 'repaired')
    ids = [{image['id'] for image in read(path)['images']}
           for path in (config.val_evaluator.ann_file, config.val_dataloader.dataset.ann_file)]
    assert ids[0] == ids[1] == set(range(1, 5))


def test_several_files_for_one_evaluator(config, val, copy, tmp_path):
    inner = config.val_dataloader.dataset
    config.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, inner])
    other = val(number_from_zero, copy / 'annotations' / 'other.json')
    config.val_evaluator.ann_file = str(other)
    check(config, repaired=tmp_path / 'repaired')
    assert 'repaired' in config.val_evaluator.ann_file


def test_lists_of_test_images(config, val):
    val(lambda content: content.pop('annotations'))
    refused(config, 'no annotations', split='test')
    config.test_evaluator.update(format_only=True, outfile_prefix='a')
    check(config, 'test')


def test_other_formats_are_left_alone(config, copy):
    config.train_dataloader.dataset.type = 'CocoPanopticDataset'
    (copy / 'annotations' / 'instances_train2017.json').write_text('[]')
    check(config, 'train')


# Images.

def test_sizes_are_read_even_after_the_time_for_headers(config, val, monkeypatch, tmp_path):
    monkeypatch.setattr(annotations, '_QUICK_SECONDS', -1)

    def drop(content):
        for image in content['images'][:2]:
            del image['width'], image['height']

    before = json.loads(val(lambda _: None).read_text())['images']
    val(drop)
    check(config, repaired=tmp_path)
    after = read(config.val_dataloader.dataset.ann_file)['images']
    assert [(image['width'], image['height']) for image in after] == [
        (image['width'], image['height']) for image in before]


def test_images_that_can_not_be_read(config, copy):
    first = sorted((copy / 'val2017').iterdir())[0]
    first.write_text('<html>')
    refused(config, 'can\'t be read', f'{first.name} (it is not an image)')
    first.unlink()
    refused(config, f'{first.name} (there is no such file)')
