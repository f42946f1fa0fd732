"""Conversion of annotations: what is read equals what was written, and faults have a sentence."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from evit_mm.cli.main import main
from evit_mm.data.check import check_coco, read_coco
from evit_mm.data.convert import convert_dataset, read_yolo
from evit_mm.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Three images of odd sizes, one of them in a subfolder."""
    folder = tmp_path / 'photos'
    for name, size in (('a.png', (64, 48)), ('b.JPG', (33, 71)), ('more/a.png', (120, 40))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', size, (90, 20, 40)).save(
            folder / name, format='PNG' if name.endswith('png') else 'JPEG')
    return folder


@pytest.fixture
def coco_file(photos):
    """Boxes with fractions and at the borders; the last image has none."""
    boxes = [(1, 7, [0, 0, 64, 48]), (1, 3, [10.25, 3.5, 20.125, 11.75]), (2, 7, [5, 6, 28, 65])]
    path = photos / 'train.json'
    path.write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.png', width=64, height=48),
                dict(id=2, file_name='b.JPG', width=33, height=71),
                dict(id=3, file_name='more/a.png', width=120, height=40)],
        categories=[dict(id=7, name='cat'), dict(id=3, name='big dog')],
        annotations=[dict(id=n, image_id=image, category_id=category, bbox=box,
                          area=box[2] * box[3], iscrowd=0, segmentation=[])
                     for n, (image, category, box) in enumerate(boxes, 1)])))
    return path


def objects(path):
    """Return the boxes of a COCO file by image and class, sorted."""
    content = json.loads(path.read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    files = {image['id']: image['file_name'] for image in content['images']}
    return sorted((files[entry['image_id']], names[entry['category_id']], *entry['bbox'])
                  for entry in content['annotations'])


def test_coco_to_yolo_and_back(coco_file, tmp_path, capsys):
    assert main(['data', 'convert', '--from', 'coco', '--to', 'yolo', str(coco_file), '--out',
                 str(tmp_path / 'yolo')]) == 0
    assert (tmp_path / 'yolo/images/train/more/a.png').is_symlink()
    assert 'train: 3 images, 3 objects, 1 images without an object' in capsys.readouterr().out
    assert main(['data', 'convert', '--from', 'yolo', str(tmp_path / 'yolo'), '--out',
                 str(tmp_path / 'back')]) == 0
    assert f'--train-ann {tmp_path / "back/train.json"}' in capsys.readouterr().out
    before, after = objects(coco_file), objects(tmp_path / 'back/train.json')
    assert [one[:2] for one in after] == [one[:2] for one in before]
    np.testing.assert_allclose([one[2:] for one in after], [one[2:] for one in before], atol=1e-5)
    content = read_coco(tmp_path / 'back/train.json')
    assert [(image['file_name'], image['width'], image['height']) for image in content['images']] \
        == [('a.png', 64, 48), ('b.JPG', 33, 71), ('more/a.png', 120, 40)]
    check = check_coco(tmp_path / 'back/train.json')
    assert not check.findings and not check.is_changed


@pytest.fixture
def yolo(photos):
    """A dataset in YOLO's layout, with one labelled image, and a way to label it."""
    (photos.parent / 'photos').rename(photos.parent / 'images')
    (photos.parent / 'labels').mkdir()
    labels = photos.parent / 'labels/a.txt'
    path = photos.parent / 'data.yaml'

    def write(text, yaml='train: images\nnames: [cat, dog]'):
        path.write_text(yaml)
        labels.write_text(text)
        return path

    return write


def test_polygons_of_yolo_keep_their_vertices(yolo):
    content = read_yolo(yolo('1 0.25 0.25 0.75 0.25 0.75 0.5 0.5 0.75\n'))['train'].content
    entry, = content['annotations']
    assert entry['segmentation'] == [[16, 12, 48, 12, 48, 24, 32, 36]]
    assert entry['bbox'] == [16, 12, 32, 24] and entry['area'] == 480
    assert entry['category_id'] == 2 and entry['iscrowd'] == 0


@pytest.mark.parametrize('line,reason', [
    ('0 0.5 0.5 0.2', 'it has 4 numbers'),
    ('0 0.5 0.5 0.2 0.2 0.9', 'it has 6 numbers'),
    ('0 .1 .1 .2 .2 .3 .3 .4', 'it has 8 numbers'),
    ('2 0.5 0.5 0.2 0.2', 'the class 2 is not among the 2 names'),
    ('-1 0.5 0.5 0.2 0.2', 'the class -1 is not among'),
    ('0.5 0.5 0.5 0.2 0.2', 'the class 0.5 is not a whole number'),
    ('0 0.5 nan 0.2 0.2', 'nan is not in the range 0 to 1'),
    ('0 32 24 10 10', '32 is not in the range 0 to 1'),
    ('0 0.5 0.5 -0.2 0.2', '-0.2 is not in the range'),
    ('cat 0.5 0.5 0.2 0.2', "'cat 0.5 0.5 0.2 0.2' is not a row of numbers")])
def test_a_fault_in_a_label_file_is_named_with_its_line(yolo, line, reason):
    path = yolo(f'0 0.5 0.5 0.25 0.25\n\n{line}\n')
    with pytest.raises(UserError) as error:
        read_yolo(path)
    assert f'labels/a.txt, line 3: {reason}' in str(error.value)


@pytest.mark.parametrize('yaml,reason', [
    ('names: [cat]\ntrain: nowhere', 'which is neither there'),
    ('train: images', 'names must list'), ('names: [a, b, a]\ntrain: images', 'more than once'),
    ('names: {0: a, 2: b}\ntrain: images', 'must number the classes 0 to 1'),
    ('names: [a]\nnc: 3\ntrain: images', 'nc is 3'), ('[1, 2]', 'is not a data.yaml'),
    ('names: [a\ntrain: }', 'is not a YAML file'),
    ('names: [a]\ntrain: labels', 'has no image')])
def test_a_fault_in_the_yaml(yolo, yaml, reason):
    with pytest.raises(UserError, match=reason):
        read_yolo(yolo('0 .5 .5 .1 .1', yaml))


@pytest.mark.parametrize('yaml', [
    'path: .\ntrain: images\nnames: {1: dog, 0: cat}', 'train: ../images\nnames: [cat, dog]',
    'path: /absent\ntrain: ./images\nnames: [cat, dog]', 'train: [images]\nnames: [cat, dog]',
    'train: list.txt\nnames: [cat, dog]'])
def test_the_ways_to_name_a_folder(yolo, yaml):
    path = yolo('1 .5 .5 .1 .1', yaml)
    (path.parent / 'list.txt').write_text('./images/a.png\nimages/b.JPG\nimages/more/a.png\n')
    content = read_yolo(path)['train'].content
    assert len(content['images']) == 3
    assert [entry['category_id'] for entry in content['annotations']] == [2]


def test_keypoints_and_boxes_across_the_border(yolo):
    pose = 'kpt_shape: [2, 2]\ntrain: images\nnames: [cat]'
    path = yolo('0 0.5 0.5 0.5 0.5 .1 .1 .2 .2\n0 0.0 0.5 0.5 1', pose)
    content = read_yolo(path)['train'].content
    assert [entry['bbox'] for entry in content['annotations']] == [
        [16, 12, 32, 24], [0, 0, 16, 48]]
    assert not any(entry['segmentation'] for entry in content['annotations'])


def test_labels_that_are_not_there(yolo, photos):
    path = yolo('')
    (path.parent / 'labels/a.txt').unlink()
    with pytest.raises(UserError, match='none of the 3 images of train has a label file'):
        read_yolo(path)
    (path.parent / 'images/a.txt').write_text('0 .5 .5 .1 .1')  # next to the image
    assert len(read_yolo(path)['train'].content['annotations']) == 1


def test_voc_to_coco(photos, tmp_path):
    pytest.importorskip('supervision', reason='supervision, which reads VOC, is an extra')

    def annotate(path, *boxes):
        root = ElementTree.Element('annotation')
        for name, *corners in boxes:
            item = ElementTree.SubElement(root, 'object')
            ElementTree.SubElement(item, 'name').text = name
            box = ElementTree.SubElement(item, 'bndbox')
            for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners, strict=True):
                ElementTree.SubElement(box, key).text = str(value)
        path.write_bytes(ElementTree.tostring(root))

    annotate(photos / 'a.xml', ('zebra', 1, 1, 64, 48), ('cat', 11, 5, 20, 40))
    annotate(photos / 'b.xml')
    written = convert_dataset(photos, tmp_path / 'out', source_format='voc')
    assert objects(written['train'].path) == [  # VOC counts pixels from 1, and includes the last
        ('a.png', 'cat', 10, 4, 10, 36), ('a.png', 'zebra', 0, 0, 64, 48)]
    annotate(photos / 'c.xml', ('cat', 1, 1, 2, 2))
    with pytest.raises(UserError, match='1 XML files have no image .*c.xml'):
        convert_dataset(photos, tmp_path / 'again', source_format='voc')


def test_labelme_to_coco(photos, tmp_path):
    shapes = [dict(label='dog', shape_type='rectangle', points=[[30.5, 40], [10, 8.25]]),
              dict(label='cat', shape_type='polygon', points=[[0, 0], [10, 0], [0, 10]],
                   group_id=4),
              dict(label='cat', shape_type='polygon', points=[[20, 20], [30, 20], [20, 30]],
                   group_id=4),
              dict(label='dog', shape_type='point', points=[[1, 1]])]
    file = dict(imagePath='..\\elsewhere\\a.png', imageWidth=64, imageHeight=48, shapes=shapes)
    (photos / 'a.json').write_text(json.dumps(file))
    written = convert_dataset(photos, tmp_path / 'out', source_format='labelme')['train']
    assert objects(written.path) == [('a.png', 'cat', 0, 0, 30, 30),
                                     ('a.png', 'dog', 10, 8.25, 20.5, 31.75)]
    assert 'left out: 1 shapes of the type point' in written.summary
    cat, = [entry for entry in read_coco(written.path)['annotations'] if entry['segmentation']]
    assert len(cat['segmentation']) == 2 and cat['area'] == 100

    for change, reason in ((dict(imageWidth=48, imageHeight=64), 'use the image that was'),
                           (dict(imagePath='none.png'), 'no such file'),
                           (dict(shapes=[dict(shapes[1], points=[[1, 2]])]), 'at least 3 points')):
        (photos / 'a.json').write_text(json.dumps({**file, **change}))
        with pytest.raises(UserError, match=reason):
            convert_dataset(photos, tmp_path / 'again', source_format='labelme')


def test_coco_to_label_maps(coco_file, tmp_path):
    content = json.loads(coco_file.read_text())
    large = [[4, 4, 44, 4, 44, 44, 4, 44]]
    small = [[10, 10, 20, 10, 20, 20, 10, 20]]
    content['annotations'] = [
        dict(id=1, image_id=1, category_id=3, bbox=[10, 10, 10, 10], area=100, iscrowd=0,
             segmentation=small),
        dict(id=2, image_id=1, category_id=7, bbox=[4, 4, 40, 40], area=1600, iscrowd=0,
             segmentation=large),
        dict(id=3, image_id=3, category_id=7, bbox=[0, 0, 1, 40], area=40, iscrowd=1,
             segmentation=dict(size=[40, 120], counts=[0, 40, 4760]))]
    coco_file.write_text(json.dumps(content))
    out = tmp_path / 'out'
    convert_dataset(coco_file, out, source_format='coco', target_format='masks')
    label_map = np.asarray(Image.open(out / 'masks/train/a.png'))
    assert label_map.shape == (48, 64)
    assert (label_map[10:20, 10:20] == 2).all()  # the small object is in front of the large one
    assert [(label_map == value).sum() for value in (0, 1, 2)] == [48 * 64 - 1600, 1500, 100]
    crowd = np.asarray(Image.open(out / 'masks/train/more/a.png'))
    assert (crowd[:, 0] == 255).all() and not crowd[:, 1:].any()
    assert (out / 'classes.txt').read_text() == 'background\ncat\nbig dog\n'

    content['annotations'][0]['segmentation'] = []
    coco_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match='1 of 3 objects have a box but no mask'):
        convert_dataset(coco_file, tmp_path / 'again', source_format='coco', target_format='masks')


def test_copies_and_refusals(coco_file, photos, tmp_path):
    out = tmp_path / 'out'
    convert_dataset(coco_file, out, source_format='coco', copy_images=True)
    copy = out / 'images/train/more/a.png'
    assert copy.read_bytes() == (photos / 'more/a.png').read_bytes() and not copy.is_symlink()
    for target, reason in ((out, 'is not empty'), (tmp_path / 'x.json', 'name a folder')):
        with pytest.raises(UserError, match=reason):
            convert_dataset(coco_file, target, source_format='coco')
    content = json.loads(coco_file.read_text())
    content['images'].append(dict(id=4, file_name='a.jpg', width=64, height=48))
    Image.new('RGB', (64, 48)).save(photos / 'a.jpg')
    coco_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match='a.png and a.jpg would share'):
        convert_dataset(coco_file, tmp_path / 'y', source_format='coco', target_format='yolo')
    content['images'][3]['file_name'] = content['images'][0]['file_name']
    coco_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match='.png is listed under the ids [0-9]+ and 4, which'):
        convert_dataset(coco_file, tmp_path / 'w', source_format='coco', target_format='yolo')
    content['images'][3]['file_name'] = str(photos / 'a.jpg')
    coco_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match='leads out of the folder'):
        convert_dataset(coco_file, tmp_path / 'z', source_format='coco', target_format='yolo')
    assert (photos / 'a.jpg').is_file() and not (photos / 'a.jpg').is_symlink()


def test_faults_of_a_coco_file_are_not_silent(coco_file, tmp_path, capsys):
    content = json.loads(coco_file.read_text())
    content['annotations'][1]['category_id'] = 99
    del content['annotations'][0]['area']
    coco_file.write_text(json.dumps(content))
    command = ['data', 'convert', '--from', 'coco', '--to', 'yolo', str(coco_file), '--out',
               str(tmp_path / 'yolo')]
    assert main(command) == 2
    assert 'category_id that is not declared' in capsys.readouterr().err
    assert main([*command, '--skip-invalid-objects']) == 0
    printed = capsys.readouterr().out
    assert '1 of 3 annotations have a category_id' in printed and 'area computed' in printed
    assert 'train: 3 images, 2 objects' in printed
