"""Configs fitted to data in any folder: what MMDetection then reads is what the files say."""

import functools
import json
import random
from copy import deepcopy

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image

from evit_mm.engine import config as configure
from evit_mm.engine import preflight, test, train
from evit_mm.engine.own_data import OwnData, use_own_data
from evit_mm.errors import UserError

test.__test__ = False  # not a test, in spite of its name


def annotations(count, *, names=('cat', 'dog', 'eel'), first=1, file='img_{}.png'):
    """Return a COCO file's content: one object of each class in each image."""
    images = [dict(id=n, file_name=file.format(n), width=64, height=48)
              for n in range(first, first + count)]
    return dict(
        images=images, categories=[dict(id=n, name=name) for n, name in enumerate(names, 1)],
        annotations=[dict(id=len(names) * i + n + 1, image_id=image['id'], category_id=n + 1,
                          bbox=[4 + 10 * n, 3, 9 + n, 12], area=12 * (9 + n), iscrowd=0,
                          segmentation=[[4 + 10 * n, 3, 13 + 11 * n, 3, 13 + 11 * n, 15]])
                     for i, image in enumerate(images) for n in range(len(names))])


def write(folder, content, name='train.json', images=None):
    """Write an annotation file and its images, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in content['images']:
        path = (images or folder) / image['file_name']
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (image['width'], image['height'])).save(path)
    (folder / name).write_text(json.dumps(content))
    return folder / name


@functools.cache
def packaged(name):
    """Read a packaged config once."""
    return configure.load_config(name)


@pytest.fixture
def fit(tmp_path):
    """Fit a config to data, check it as a run does, and return it."""
    def run(own, name='retinanet_evit_m0_coco', *, training=True, **options):
        config = deepcopy(packaged(name))
        config.work_dir = str(tmp_path / 'work')
        run.images = use_own_data(config, own, training=training, **options)
        for split in ('train', 'val') if training else ('test',):
            preflight.check_files(config[f'{split}_dataloader'], scope='mmdet')
            preflight.check_annotations(config, split)
        return config

    return run


def read(config, split):
    """Return what MMDetection reads: file name, class and box of each object."""
    dataset, = configure.leaf_datasets(config[f'{split}_dataloader'])
    built = DATASETS.build(dict(dataset, pipeline=[]))
    classes = built.metainfo['classes']
    return sorted((info['img_path'], classes[one['bbox_label']], *one['bbox'])
                  for info in (built.get_data_info(index) for index in range(len(built)))
                  for one in info['instances'])


def listed(content, folder):
    """Return the same of an annotation file's content."""
    names = {category['id']: category['name'] for category in content['categories']}
    files = {image['id']: image['file_name'] for image in content['images']}
    return sorted((str(folder / files[entry['image_id']]), names[entry['category_id']], x, y, x + w,
                   y + h) for entry in content['annotations'] for x, y, w, h in [entry['bbox']])


def test_all_objects_arrive_under_their_names(fit, tmp_path):
    """The second file has other ids, another order, and lacks a class."""
    train_content = annotations(4)
    val_content = annotations(2, names=('eel', 'cat'), first=9)
    for category in val_content['categories']:
        category['id'] += 40
    for entry in val_content['annotations']:
        entry['category_id'] += 40
    config = fit(OwnData(write(tmp_path / 'a', train_content),
                         write(tmp_path / 'b', val_content, 'v.json')))
    assert fit.images == 4
    assert read(config, 'train') == listed(train_content, tmp_path / 'a')
    assert read(config, 'val') == read(config, 'test') == listed(val_content, tmp_path / 'b')
    val, = configure.leaf_datasets(config.val_dataloader)
    assert val['metainfo']['classes'] == ('cat', 'dog', 'eel')
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == val['ann_file']
    assert json.loads((tmp_path / 'b/v.json').read_text()) == val_content  # untouched
    train_file, = configure.leaf_datasets(config.train_dataloader)
    assert train_file['ann_file'] == str(tmp_path / 'a/train.json')  # fits as it is


@pytest.mark.parametrize('name,heads', [
    ('retinanet_evit_m0_coco', 1), ('mask_rcnn_evit_m0_coco', 2), ('dino_evit_m4_coco', 1),
    ('cascade_mask_rcnn_evit_m4_coco', 4), ('rtmdet_evit_m4_coco', 1), ('tood_evit_m4_coco', 1),
    ('evit_det_s_coco', 1),
    ('retinanet_evit_m0_memorize', 1)])
def test_every_head_has_the_classes(fit, tmp_path, name, heads):
    config = fit(OwnData(write(tmp_path / 'a', annotations(10))), name)
    counts = []

    def collect(part, path=''):
        if isinstance(part, dict):
            for key, value in part.items():
                if key == 'num_classes' and 'rpn' not in path:
                    counts.append(value)
                collect(value, f'{path}.{key}')
        elif isinstance(part, list):
            for value in part:
                collect(value, path)

    collect(config.model)
    assert counts == [3] * heads
    assert len(read(config, 'train')) + len(read(config, 'val')) == 30


def test_heads_of_queries_weigh_their_classes(fit, tmp_path):
    config = deepcopy(packaged('retinanet_evit_m0_coco'))
    config.work_dir = str(tmp_path / 'work')
    config.model = dict(panoptic_head=dict(
        num_things_classes=80, num_stuff_classes=0,
        loss_cls=dict(type='CrossEntropyLoss', class_weight=[2.0] * 80 + [0.1])))
    use_own_data(config, OwnData(write(tmp_path / 'a', annotations(4))), training=True)
    head = config.model.panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes) == (3, 0)
    assert head.loss_cls.class_weight == [2.0, 2.0, 2.0, 0.1]


def test_a_fifth_is_held_out_the_same_in_each_run(fit, tmp_path):
    content = annotations(30)
    for image in content['images'][:4]:  # four augmented copies of a picture
        image['file_name'] = f'photo_jpg.rf.{image["id"]}.png'
    content['images'] += [dict(id=100 + n, file_name=f'empty_{n}.png', width=64, height=48)
                          for n in range(5)]
    own = OwnData(write(tmp_path / 'a', content))
    config = fit(own)
    train_objects, val_objects = read(config, 'train'), read(config, 'val')
    assert sorted(train_objects + val_objects) == listed(content, tmp_path / 'a')
    val_files = {one[0] for one in val_objects}
    assert not val_files & {one[0] for one in train_objects}
    assert 6 <= len(val_files) <= 9 and fit.images == 30 - len(val_files)
    assert sum('photo' in file for file in val_files) in (0, 4)
    written = json.loads((tmp_path / 'work/annotations/val.json').read_text())
    assert sum('empty' in image['file_name'] for image in written['images']) == 1

    random.Random(1).shuffle(content['images'])
    write(tmp_path / 'a', content)
    assert {one[0] for one in read(fit(own), 'val')} == val_files


def test_a_group_without_objects_is_left_out(fit, tmp_path, capsys):
    content = annotations(5)
    for category in content['categories']:
        category['supercategory'] = 'animals'
    content['categories'].insert(0, dict(id=0, name='animals', supercategory='none'))
    content['categories'].append(dict(id=9, name='rare', supercategory='animals'))
    config = fit(OwnData(write(tmp_path / 'a', content)))
    dataset, = configure.leaf_datasets(config.train_dataloader)
    assert dataset['metainfo']['classes'] == ('cat', 'dog', 'eel', 'rare')
    assert "left out the category 'animals'" in capsys.readouterr().out
    content['annotations'][0]['category_id'] = 0  # then it is a class
    config = fit(OwnData(write(tmp_path / 'a', content)))
    assert config.model.bbox_head.num_classes == 5


@pytest.mark.parametrize('file,images,flag', [
    ('x/train.json', 'x', None), ('x/annotations/train.json', 'x/train2017', None),
    ('x/result.json', 'x/images', None), ('x/annotations/instances.json', 'x/images/train', None),
    ('x/train.json', 'elsewhere/deep', 'elsewhere/deep'), ('x/t.json', 'there/train', 'there')])
def test_images_are_found(fit, tmp_path, file, images, flag):
    content = annotations(5)
    path = tmp_path / file
    write(path.parent, content, path.name, tmp_path / images)
    config = fit(OwnData(path, images=tmp_path / flag if flag else None))
    found = sorted(read(config, 'train') + read(config, 'val'))
    assert found == listed(content, tmp_path / images)


def test_paths_of_another_machine(fit, tmp_path):
    content = annotations(5)
    path = write(tmp_path / 'a', content)
    foreign = annotations(5, file='C:\\photos\\img_{}.png')
    path.write_text(json.dumps(foreign))
    config = fit(OwnData(path))
    assert sorted(read(config, 'train') + read(config, 'val')) == listed(content, tmp_path / 'a')
    foreign['images'][1]['file_name'] = 'D:\\img_1.png'
    path.write_text(json.dumps(foreign))
    with pytest.raises(UserError, match='both are img_1.png'):
        fit(OwnData(path))


def test_yolo_gives_the_same_objects(fit, tmp_path):
    contents = {'train': annotations(4), 'valid': annotations(2, first=7)}
    for split, content in contents.items():
        folder = tmp_path / 'y' / split
        write(folder, content, images=folder / 'images')
        (folder / 'labels').mkdir()
        for image in content['images']:
            lines = [(entry['category_id'] - 1, entry['bbox']) for entry in content['annotations']
                     if entry['image_id'] == image['id']]
            (folder / 'labels' / f'img_{image["id"]}.txt').write_text(''.join(
                f'{label} {(x + w / 2) / 64} {(y + h / 2) / 48} {w / 64} {h / 48}\n'
                for label, (x, y, w, h) in lines))
    (tmp_path / 'y/data.yaml').write_text(
        'train: ../train/images\nval: ../valid/images\nnames: [cat, dog, eel]\n')
    config = fit(OwnData(data=tmp_path / 'y/data.yaml'))
    for split, name in (('train', 'train'), ('val', 'valid')):
        expected = listed(contents[name], tmp_path / 'y' / name / 'images')
        found = read(config, split)
        assert [one[:2] for one in found] == [one[:2] for one in expected]
        assert [x for one in found for x in one[2:]] == pytest.approx(
            [x for one in expected for x in one[2:]], abs=1e-9)


def test_a_test_takes_the_classes_of_the_training(fit, tmp_path):
    content = annotations(3, names=('eel', 'cat'))
    own = OwnData(val_ann=write(tmp_path / 'a', content))
    config = fit(own, training=False, classes=['cat', 'dog', 'eel'])
    assert read(config, 'test') == listed(content, tmp_path / 'a')
    assert config.model.bbox_head.num_classes == 3
    with pytest.raises(UserError, match='objects of eel are not among the classes of the training'):
        fit(own, training=False, classes=['cat', 'dog'])


def test_data_that_need_repair_or_a_decision(fit, tmp_path):
    content = annotations(5)
    for entry in content['annotations']:
        entry['id'] -= 1  # pycocotools takes 0 for none
        del entry['area']
    config = fit(OwnData(write(tmp_path / 'a', content)))
    assert sorted(read(config, 'train') + read(config, 'val')) == listed(content, tmp_path / 'a')
    content['annotations'][3]['category_id'] = 77
    own = OwnData(write(tmp_path / 'a', content))
    with pytest.raises(UserError, match=r'a/train.json: 1 of 15 annotations have a category_id'):
        fit(own)
    config = fit(own, skip_invalid=True)
    assert len(read(config, 'train') + read(config, 'val')) == 14


@pytest.mark.parametrize('options,reason', [
    (dict(), '--train-ann is missing'),
    (dict(train_ann='a/none.json'), 'no such file: a/none.json; --train-ann'),
    (dict(train_ann='a/train.json', val_ann='v.json'), 'no such file: v.json; --val-ann'),
    (dict(train_ann='a/train.json', images='nowhere'), 'no such folder: .*nowhere; --images'),
    (dict(train_ann='a/train.json', images='b'), 'no image such as img_1.png was found'),
    (dict(train_ann='a/train.json', val_ann='b/other.json'), 'objects of fox are not among'),
    (dict(train_ann='b/one.json'), 'too few images with objects'),
    (dict(data='d.yaml', train_ann='a/train.json'), '--data names images and labels .*--train-ann'),
    (dict(data='d.yaml'), 'no such file: d.yaml')])
def test_mistakes(fit, tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'a', annotations(5))
    other = annotations(2, names=('fox',), file='o/{}.png')
    write(tmp_path / 'b', other, 'other.json')
    write(tmp_path / 'b', annotations(1, file='o/{}.png'), 'one.json')
    with pytest.raises(UserError, match=reason) as error:
        fit(OwnData(**options) if options else OwnData(images='a'))
    assert '\n' not in str(error.value)


def test_segmentors_are_refused(fit, tmp_path):
    with pytest.raises(UserError, match='learns from label maps'):
        fit(OwnData(write(tmp_path / 'a', annotations(5))), 'upernet_evit_m0_shapes')


@pytest.fixture(scope='session')
def tiny(detection):
    """Options for a training of seconds, whose length the recipe sets."""
    return {key: value for key, value in detection.items() if not key.startswith(
        ('train_cfg', 'default_hooks', 'train_dataloader.batch_size'))}


def test_a_whole_run_and_what_it_writes(tiny, config_file, tmp_path, capsys):
    """Train, start another training from its result, and test that."""
    path = write(tmp_path / 'a', annotations(10))
    options = dict(seed=1, cfg_options=tiny)
    first = train(config_file, train_ann=path, work_dir=tmp_path / 'one', epochs=1, **options)
    best, = first.glob('best_coco_bbox_mAP_epoch_1.pth')
    second = train(config_file, train_ann=path, work_dir=tmp_path / 'two', iters=4, ema=True,
                   early_stopping=3, from_checkpoint=best, **options)
    written = Config.fromfile(second / 'retinanet_evit_m0_shapes.py')
    assert written.load_from == str(best) and written.model.bbox_head.num_classes == 3
    files = {file: file.read_bytes() for file in [
        second / 'retinanet_evit_m0_shapes.py', *(second / 'annotations').iterdir()]}
    assert len(files) > 1
    # A test in the work dir of the training, of data that have to be adapted.
    incomplete = annotations(10)
    for entry in incomplete['annotations']:
        del entry['area'], entry['iscrowd']
    other = write(tmp_path / 'b', incomplete)
    metrics = test(second / 'retinanet_evit_m0_shapes.py', second / 'epoch_1.pth', val_ann=other,
                   cfg_options={'model.test_cfg.max_per_img': 7})
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert {file: file.read_bytes() for file in files} == files
    assert {*(second / 'annotations').iterdir()} < {*files}
    assert list((second / 'test' / 'annotations').iterdir())
    of_test, = second.glob('*/retinanet_evit_m0_shapes.py')
    assert Config.fromfile(of_test).model.test_cfg.max_per_img == 7
    assert 'test: ' in capsys.readouterr().out
    for conflict in (dict(data_root=tmp_path), dict(resume=True, from_checkpoint=best)):
        with pytest.raises(UserError, match='leave one of them out|choose one'):
            train(config_file, train_ann=path, work_dir=tmp_path / 'four', **conflict, **options)


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['coco', 'yolo'])
def test_real_images_of_renamed_classes(layout, coco_mini, config_file, loaders, tmp_path, scalars):
    """Both layouts train at the first attempt, and the loss falls."""
    from evit_mm.data.convert import convert_dataset

    names = ('alpha', 'beta', 'gamma')
    for split in ('train', 'val'):
        content = json.loads((coco_mini / f'annotations/instances_{split}2017.json').read_text())
        if split == 'train':
            counts = [entry['category_id'] for entry in content['annotations']]
            common = sorted(sorted(set(counts), key=counts.count)[-3:])
        objects = [entry for entry in content['annotations'] if entry['category_id'] in common
                   and not entry['iscrowd']]
        filled = {entry['image_id'] for entry in objects}
        (tmp_path / f'{split}.json').write_text(json.dumps(dict(
            images=[image for image in content['images'] if image['id'] in filled],
            annotations=objects,
            categories=[dict(id=number, name=name)
                        for number, name in zip(common, names, strict=True)])))
    own = dict(train_ann=tmp_path / 'train.json', images=coco_mini / 'train2017',
               val_ann=tmp_path / 'val.json', val_images=coco_mini / 'val2017')
    if layout == 'yolo':
        for split in ('train', 'val'):
            convert_dataset(own[f'{split}_ann'], tmp_path / split, source_format='coco',
                            target_format='yolo', images=coco_mini / f'{split}2017')
        (tmp_path / 'data.yaml').write_text(
            'train: train/images/train\nval: val/images/val\n'
            f'names: [{", ".join(names)}]\n')
        own = dict(data=tmp_path / 'data.yaml')
    work_dir = train(config_file, work_dir=tmp_path / 'run', epochs=12, seed=0,
                     cfg_options=loaders, **own)
    losses = [entry['loss'] for entry in scalars(work_dir)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert list(work_dir.glob('epoch_12.pth'))
