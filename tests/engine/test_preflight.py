"""Each mistake is found before training, and told in one sentence that says how to mend it."""

import json
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from evit_mm.engine import configure, preflight
from evit_mm.errors import CheckpointError, ConfigError, UserError


@pytest.fixture
def copy(shapes, tmp_path, config):
    """A copy of the data set to break, with the config pointing to it."""
    root = tmp_path / 'copy'
    shutil.copytree(shapes, root)
    configure.set_data_root(config, root)
    return root


def rewrite(root, change):
    path = root / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def fails(config, *fragments, error=UserError):
    with pytest.raises(error) as caught:
        preflight.check_files(config.train_dataloader)
    text = str(caught.value)
    assert all(fragment in text for fragment in fragments), text
    assert '\n' not in text


def test_a_good_data_set_passes(config, copy):
    preflight.check_files(config.train_dataloader)
    init_default_scope('mmdet')
    dataset = preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset),
                                      'train')
    assert len(dataset) == 8
    preflight.check_classes(MODELS.build(config.model), dataset, 'train')


def test_missing_data_says_how_to_get_it(config, copy):
    shutil.rmtree(copy / 'train2017')
    fails(config, 'train2017', 'cocodataset.org', '--data-root', 'prepare_data.py')
    (copy / 'train2017').mkdir()
    fails(config, 'is empty')
    (copy / 'annotations' / 'instances_train2017.json').unlink()
    fails(config, 'instances_train2017.json does not exist')
    shutil.rmtree(copy)
    fails(config, 'the data set is not there', str(copy))


def test_unknown_missing_and_reordered_categories(config, copy):
    def rename(content):
        content['categories'][1]['name'] = 'pentagon'

    rewrite(copy, rename)
    fails(config, 'categories that the config does not know: pentagon', 'num_classes=4',
          error=ConfigError)
    rewrite(copy, lambda content: content['categories'].pop(1))
    fails(config, "['square']", 'num_classes=3', error=ConfigError)

    def reverse(content):
        names = ['star', 'triangle', 'square', 'circle']
        content['categories'] = [dict(id=i + 1, name=name) for i, name in enumerate(names)]

    rewrite(copy, reverse)
    fails(config, 'another order', "('star', 'triangle', 'square', 'circle')", error=ConfigError)


def test_left_out_categories_on_request(config, copy):
    """mmdet trains on a part of the categories where the config says which."""
    rewrite(copy, lambda content: content['categories'].append(dict(id=5, name='pentagon')))
    fails(config, 'pentagon', '--ignore-unknown-categories', error=ConfigError)
    preflight.check_files(config.train_dataloader, ignore_unknown_categories=True)


@pytest.mark.parametrize('change', [
    dict(data_root='s3://bucket/coco'), dict(backend_args=dict(backend='petrel')),
    dict(ann_file='http://127.0.0.1/train.json')])
def test_remote_data_is_left_to_its_backend(config, change):
    config.train_dataloader.dataset.update(change)
    preflight.check_files(config.train_dataloader)


def test_classes_from_a_file(config, copy, tmp_path):
    (tmp_path / 'classes.txt').write_text('circle\nsquare\ntriangle\nstar\n')
    config.train_dataloader.dataset.metainfo = dict(classes=str(tmp_path / 'classes.txt'))
    preflight.check_files(config.train_dataloader)


def test_other_readers_of_json_are_not_taken_for_coco(config, copy):
    config.train_dataloader.dataset.type = 'LVISV1Dataset'
    (copy / 'annotations' / 'instances_train2017.json').write_text('[]')
    preflight.check_files(config.train_dataloader)


def test_heads_that_do_not_count_the_classes(config, copy):
    """The stem of a panoptic or cascade detector is none of the data set's business."""
    init_default_scope('mmdet')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    model = MODELS.build(config.model)
    model.semantic_head = torch.nn.Module()
    model.semantic_head.num_classes = 183
    preflight.check_classes(model, dataset, 'train')
    dataset._metainfo['thing_classes'] = ['circle']
    model.bbox_head.num_classes = 1
    preflight.check_classes(model, dataset, 'train')


def test_coco_configs_do_not_take_other_categories(repository, copy):
    config = Config.fromfile(repository / 'configs' / 'retinanet_evit_m0_coco.py')
    configure.set_data_root(config, copy)
    fails(config, 'circle, square, triangle, star', error=ConfigError)


@pytest.mark.parametrize('content,fragment', [
    ('', 'empty'), ('{"images": []}', 'no list of categories'), ('no json', 'no list'),
    ('{"categories": [{"id": 1, "na', 'cut off'), ('{"categories": [1]}', 'not a COCO')])
def test_annotations_that_are_none(config, copy, content, fragment):
    (copy / 'annotations' / 'instances_train2017.json').write_text(content)
    fails(config, 'instances_train2017.json', fragment)


def test_missing_images(config, copy):
    third, fourth = sorted((copy / 'train2017').iterdir())[2:4]
    third.unlink()
    fourth.write_bytes(b'')
    init_default_scope('mmdet')
    with pytest.raises(UserError, match='2 of the 8 images of the train data set are missing or '
                                        'empty.*000000000003'):
        preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset), 'train')


def test_no_usable_images(config, copy):
    rewrite(copy, lambda content: content.update(annotations=[]))
    init_default_scope('mmdet')
    with pytest.raises(UserError, match='the train data set has no images that can be used'):
        preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset), 'train')


def test_annotations_that_break_the_reader(config, copy):
    rewrite(copy, lambda content: content['annotations'][0].pop('image_id'))
    init_default_scope('mmdet')
    with pytest.raises(UserError, match="the train data set can.t be read: KeyError: 'image_id'"):
        preflight.built_dataset(lambda: DATASETS.build(config.train_dataloader.dataset), 'train')


def test_heads_with_another_number_of_classes(repository, config, copy):
    init_default_scope('mmdet')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    for name in ('retinanet', 'mask_rcnn'):
        other = Config.fromfile(repository / 'configs' / f'{name}_evit_m0_coco.py')
        with pytest.raises(ConfigError, match=r'80 classes.*has 4.*num_classes=4'):
            preflight.check_classes(MODELS.build(other.model), dataset, 'train')


@pytest.fixture
def model(config):
    init_default_scope('mmdet')
    return MODELS.build(config.model)


def save(path, state, **more):
    torch.save(dict(state_dict=state, **more), path)
    return str(path)


def test_checkpoints_of_this_model(model, config, tmp_path):
    whole = save(tmp_path / 'a.pth', model.state_dict(), meta={}, message_hub={}, optimizer={})
    for purpose in ('test', 'resume', 'finetune'):
        preflight.check_checkpoint(model, whole, purpose=purpose)
    weights = save(tmp_path / 'b.pth', model.state_dict())
    with pytest.raises(CheckpointError, match='resumed from.*weights only.*load_from'):
        preflight.check_checkpoint(model, weights, purpose='resume')
    config.model.backbone.window_sizes = 8
    other = MODELS.build(config.model)
    preflight.check_checkpoint(other, whole, purpose='test')  # bias tables are resized
    with pytest.raises(CheckpointError, match='window_sizes.*49 -> 64'):
        preflight.check_checkpoint(other, whole, purpose='resume')


def test_checkpoints_of_other_models(model, config, tmp_path):
    config.model.backbone.arch = 'm1'
    config.model.neck.in_channels = [128, 144, 192]
    other = save(tmp_path / 'm1.pth', MODELS.build(config.model).state_dict())
    for purpose in ('test', 'finetune'):
        with pytest.raises(CheckpointError, match='m1.pth is not.*looks like m1.*config.s is m0'):
            preflight.check_checkpoint(model, other, purpose=purpose)
    stranger = save(tmp_path / 'r.pth', {'backbone.conv1.weight': torch.zeros(1)})
    with pytest.raises(CheckpointError, match='another model'):
        preflight.check_checkpoint(model, stranger, purpose='test')


def test_fine_tuning_takes_another_head(model, config, tmp_path, monkeypatch):
    config.model.bbox_head.num_classes = 7
    other = save(tmp_path / 'a.pth', MODELS.build(config.model).state_dict())
    said = []
    monkeypatch.setattr(preflight, 'print_log', lambda text, **_: said.append(text))
    preflight.check_checkpoint(model, other, purpose='finetune')
    assert 'of another shape (bbox_head.retina_cls.weight' in said[-1]
    with pytest.raises(CheckpointError, match='2 tensors of another shape'):
        preflight.check_checkpoint(model, other, purpose='test')


@pytest.mark.parametrize('batch,processes,accumulate,warned', [
    (8, 1, 1, False), (4, 2, 1, False), (2, 2, 2, False), (8, 2, 1, True), (1, 1, 1, True)])
def test_effective_batch(config, monkeypatch, batch, processes, accumulate, warned):
    said = []
    monkeypatch.setattr(preflight, 'print_log', lambda text, **_: said.append(text))
    config.train_dataloader.batch_size = batch
    config.optim_wrapper.accumulative_counts = accumulate
    preflight.log_batch_size(config, processes)
    effective = batch * processes * accumulate
    assert f'effective batch size {effective} ' in said[0] and 'learning rate 0.001' in said[0]
    assert (len(said) == 2) == warned
    if warned:
        assert '--auto-scale-lr' in said[1] and f'{0.001 * effective / 8:g}' in said[1]
        config.auto_scale_lr.enable = True
        preflight.log_batch_size(config, processes)
        assert len(said) == 3
