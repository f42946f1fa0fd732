"""The full check of a dataset: splits together, images, reports, pages and repaired copies."""

import json
import re
import shutil
from copy import deepcopy

import numpy as np
import pytest
from coco_files import sound_content
from PIL import Image

from evit_mm.cli.main import main
from evit_mm.data import CocoSource, check_dataset
from evit_mm.data.check.images import check_leakage
from evit_mm.engine import config as configure
from evit_mm.engine.data_check import check_data


def picture(path, seed, mode='RGB', **options):
    values = np.random.default_rng(seed).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == 'I;16':
        image = Image.fromarray(values[..., 0].astype('uint16') * 200)
    elif mode != 'RGB':
        image = image.convert(mode)
    image.save(path, **options)


@pytest.fixture
def data(tmp_path):
    """Two splits of three images."""
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        for n in (1, 2, 3):
            picture(tmp_path / split / f'{n}.jpg', seed=n + 10 * (split == 'val'))
        (tmp_path / f'{split}.json').write_text(json.dumps(sound_content()))
    return tmp_path


def sources(data, **options):
    return {split: CocoSource(data / f'{split}.json', str(data / split), **options)
            for split in ('train', 'val')}


def kinds(findings):
    return {finding.kind for finding in findings}


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_sound_dataset(data):
    check = check_dataset(sources(data), decode=True)
    assert not check.all_findings() and not check.stopping
    train = check.splits[0]
    assert train.class_images == {'cat': 2, 'dog': 2}
    assert len(train.boxes) == 6 and (20, 30) in train.boxes
    report = check.as_dict()
    assert json.loads(json.dumps(report)) == report
    assert report['usable'] and report['splits'][1]['formats'] == {'JPEG': 3}
    assert report['splits'][0]['objects'] == {
        'cat': dict(count=3, images=2), 'dog': dict(count=3, images=2)}


def test_same_images_in_two_splits(data):
    shutil.copy(data / 'train' / '2.jpg', data / 'val' / '3.jpg')
    finding, = check_dataset(sources(data)).findings
    assert finding.kind == 'same image' and finding.count == 1
    assert finding.examples == (f'{data}/train/2.jpg = {data}/val/3.jpg',)


@pytest.mark.parametrize('one,other,alike', [
    ('a_jpg.rf.0123456789abcdef0123.jpg', 'a_jpg.rf.fedcba98765432100000.jpg', True),
    ('a.jpg', 'a (1).jpg', True), ('a copy.jpg', 'a.png', True), ('a_aug_3.jpg', 'a.jpg', True),
    ('a.jpg', 'a.jpg', False), ('a1.jpg', 'a2.jpg', False),
    ('a_jpg.rf.0123456789abcdef0123.jpg', 'b_jpg.rf.0123456789abcdef0123.jpg', False)])
def test_versions_of_an_image_in_two_splits(tmp_path, one, other, alike):
    paths = [tmp_path / 'one' / one, tmp_path / 'other' / other]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        picture(path, seed)
    findings = check_leakage(dict(one=[str(paths[0])], other=[str(paths[1])]))
    assert kinds(findings) == ({'similar name'} if alike else set())


def test_damaged_images_are_found_by_decoding(data):
    path = data / 'val' / '2.jpg'
    path.write_bytes(path.read_bytes()[:-300])
    assert not check_dataset(sources(data)).stopping
    finding, = check_dataset(sources(data), decode=True).stopping
    assert 'was cut off' in finding.message and str(path) in finding.message
    path.write_text('<html>')
    finding, = check_dataset(sources(data), decode=True).stopping
    assert '2.jpg (it is not an image)' in finding.message


def test_modes(data):
    picture(data / 'train' / '1.jpg', 1, mode='L')
    picture(data / 'val' / '1.png', 1, mode='I;16')
    change(data / 'val.json', lambda content: content['images'][0].update(file_name='1.png'))
    train, val = check_dataset(sources(data)).splits
    assert kinds(train.findings) == {'modes'} and '2 RGB, 1 L' in train.findings[0].message
    assert kinds(val.findings) == {'modes', 'bit depth'}
    assert '1 of 3 images have more than 8 bits' in val.findings[0].message


def test_classes_without_objects_and_tiny_boxes(data):
    def edit(content):
        content['annotations'] = [entry for entry in content['annotations']
                                  if entry['category_id'] == 1]

    change(data / 'val.json', edit)
    train, val = check_dataset(sources(data, scales=[(200, 160), (30, 24)])).splits
    assert kinds(train.findings) == {'tiny'}
    assert '2 of 6 boxes are narrower than 4 pixels after the resize to 30x24' \
        in train.findings[0].message
    assert kinds(val.findings) == {'tiny', 'class without objects'}
    assert 'val: no object of 1 of the 2 classes: dog' in val.findings[0].message


# The command.

def run(*arguments):
    return main(['data', 'check', *map(str, arguments)])


@pytest.fixture
def flags(data):
    return ['--coco', data / 'train.json', data / 'val.json',
            '--images', data / 'train', data / 'val']


def test_command_on_a_sound_dataset(data, flags, capsys):
    assert run(*flags, '--json', data / 'out.json', '--repair', data / 'repaired') == 0
    printed = capsys.readouterr().out
    assert re.search(r'train: .*/train.json\n  images +3 +1 without an object; 3 JPEG; 3 RGB\n'
                     r'  objects +6 +1 crowd regions\n    cat +3 in 2 images', printed), printed
    assert 'a run would stop: no\nnothing to repair' in printed
    assert json.loads((data / 'out.json').read_text())['usable']
    assert not (data / 'repaired').exists()


def test_command_repairs(data, flags, capsys):
    for split in ('train', 'val'):
        change(data / f'{split}.json', lambda content: [
            entry.update(id=n) for n, entry in enumerate(content['annotations'])])
    change(data / 'val.json', lambda content: content['annotations'][0].update(
        bbox=[1, 2, 3], segmentation=[]))
    assert run(*flags, '--repair', data / 'repaired') == 2
    captured = capsys.readouterr()
    assert 'invalid ' in captured.out and 'a run would stop: 1 fault to mend' in captured.out
    assert captured.err.startswith('error: a run would stop: ') and 'no bbox' in captured.err
    assert [path.name for path in (data / 'repaired').iterdir()] == ['train.json']
    assert run(*flags, '--repair', data / 'repaired', '--skip-invalid-objects') == 0
    content = json.loads((data / 'repaired' / 'val.json').read_text())
    assert [entry['id'] for entry in content['annotations']] == list(range(1, 7))
    repaired = data / 'repaired'
    assert run('--coco', repaired / 'train.json', repaired / 'val.json', *flags[3:]) == 0
    # The file that was checked is not replaced.
    assert run(*flags, '--repair', data, '--skip-invalid-objects') == 2
    assert 'needs another folder' in capsys.readouterr().err


def test_files_of_one_name_get_copies_of_their_own(data, capsys):
    for split in ('train', 'val'):
        content = sound_content()
        content['annotations'][0]['id'] = 0
        (data / split / 'a.json').write_text(json.dumps(content))
    files = [data / split / 'a.json' for split in ('train', 'val')]
    check = check_dataset({path.parent.name: CocoSource(path, str(path.parent)) for path in files})
    assert [path.name for path in check.write_repaired(data / 'out')] == ['a.json', 'val-a.json']


@pytest.mark.parametrize('arguments,fragment', [
    ([], 'name one dataset'), (['a.py', '--coco', 'b.json'], 'name one dataset'),
    (['--coco', 'none.json'], 'can\'t read none.json'),
    (['--coco', 'a.json', '--images', 'none'], 'no such folder: none'),
    (['--coco', 'a.json', '--images', '.', '.'], '2 folders for 1'),
    (['--coco', 'a.json', '--classes', 'none.txt'], 'no such file: none.txt'),
    (['--masks', 'none'], 'no such folder: none'), (['--masks', '.'], 'no label maps in'),
    (['none.py'], 'no such config: none.py'),
    (['a.py', '--images', '.'], 'belong to --coco and --masks')])
def test_mistakes(arguments, fragment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert fragment in error and error.count('\n') == 1 and error.startswith('error: ')


def test_classes_from_a_file(data, flags, capsys):
    (data / 'classes.txt').write_text('dog\n\n')
    assert run(*flags, '--classes', data / 'classes.txt') == 0
    assert '4 of categories that the config does not have' in capsys.readouterr().out


def test_page(data, flags):
    pytest.importorskip('supervision')
    change(data / 'train.json', lambda content: content['categories'][0].update(name='<b>cat</b>'))
    path = data / 'val' / '2.jpg'
    path.write_bytes(path.read_bytes()[:-300])
    assert run(*flags, '--html', data / 'page.html') == 0
    page = (data / 'page.html').read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 3  # of the images with objects
    assert '2.jpg was cut off' in page
    assert '&lt;b&gt;cat' in page and '<b>cat' not in page
    assert 'A run would start.' in page and '<svg' in page
    assert 'http' not in page.replace('base64', '')  # nothing is fetched


# Configs.

@pytest.fixture
def config(coco_root, repository, tmp_path):
    root = tmp_path / 'coco'
    shutil.copytree(coco_root, root)
    config = configure.load_config(repository / 'configs' / 'retinanet_evit_m0_shapes.py')
    configure.set_data_root(config, root)
    return config


def test_data_of_a_config(config):
    check = check_data(config)
    assert [split.name for split in check.splits] == ['train', 'val']  # test reads val's file
    assert not check.stopping
    assert [split.source.scales for split in check.splits] == [[(192, 192)]] * 2
    assert check.splits[0].coco.images == 11


def test_faults_between_config_and_data(config, tmp_path):
    broken = deepcopy(config)
    broken.val_evaluator.ann_file = str(tmp_path / 'gone.json')
    finding, = check_data(broken).stopping
    assert 'gone.json, which does not exist' in finding.message
    path = tmp_path / 'coco' / 'annotations' / 'instances_train2017.json'
    change(path, lambda content: content['categories'].reverse())
    finding, = check_data(config).stopping
    assert 'another order' in finding.message
    change(path, lambda content: content['categories'].reverse())
    change(path, lambda content: content['categories'].append(dict(id=9, name='pentagon')))
    finding, = check_data(config).stopping
    assert 'does not have: pentagon' in finding.message
    assert not check_data(config, ignore_unknown_categories=True).stopping


def test_label_maps_of_a_folder(ade_root, tmp_path, capsys):
    flags = ['--masks', ade_root / 'annotations' / 'training',
             '--images', ade_root / 'images' / 'training']
    assert run(*flags, '--zero-is-unlabelled') == 0
    assert 'label maps' in capsys.readouterr().out
    path = sorted((ade_root / 'annotations' / 'training').iterdir())[0]
    (tmp_path / 'classes.txt').write_text('only\n')
    assert run(*flags, '--classes', tmp_path / 'classes.txt') == 2
    assert path.parent.name in capsys.readouterr().err
