"""Every kind of fault in a COCO file is repaired, accounted for, or refused with one sentence."""

import json
from copy import deepcopy

import pytest
from pycocotools import mask as coco_mask

from evit_mm.data.check import ImageHeader, Severity, check_coco, read_coco
from evit_mm.data.check.coco import _runs
from evit_mm.errors import UserError

HEADERS = {f'{n}.jpg': ImageHeader(100, 80, 1, 'RGB', 'JPEG') for n in (1, 2, 3)}


def refused(check, *fragments, skip_invalid=False):
    with pytest.raises(UserError) as caught:
        check.findings.raise_errors(skip_invalid=skip_invalid)
    text = str(caught.value)
    assert all(fragment in text for fragment in ('mine.json', *fragments)), text
    assert '\n' not in text


def found(check, kind):
    """Return the only finding of a kind."""
    finding, = [finding for finding in check.findings if finding.kind == kind]
    return finding


def accounts_for(check, total):
    """Return whether the counts of a check add up to the objects of its file."""
    return check.objects.total() + check.crowds + check.left_out.total() == total


def test_sound_file_stays_as_it_is(check, content):
    before = deepcopy(content)
    result = check(content, headers=HEADERS, needs_masks=True)
    assert result.content == before
    assert not result.findings and not result.is_changed and not result.left_out
    assert result.objects == {'cat': 3, 'dog': 3}
    assert (result.crowds, result.images, result.empty_images) == (1, 3, 1)
    assert result.describe().endswith(
        '3 images, 6 objects of 2 classes, 1 crowd regions, 1 images without an object')


@pytest.mark.parametrize('split', ['train', 'val'])
def test_real_files_stay_as_they_are(coco_mini, split):
    path = coco_mini / 'annotations' / f'instances_{split}2017.json'
    before = json.loads(path.read_text())
    result = check_coco(path, needs_masks=True)
    assert not result.is_changed
    assert {**result.content, 'info': 0} == {**before, 'info': 0}
    assert not result.findings.of(Severity.ERROR, Severity.INVALID)
    assert accounts_for(result, len(before['annotations']))


def test_few_thin_objects_stay_in_the_file(check, content):
    """COCO has some: training passes over them, and evaluation counts them."""
    content['annotations'] *= 3
    content['annotations'] = [dict(entry, id=n)
                              for n, entry in enumerate(content['annotations'], 1)]
    content['annotations'][0] = dict(content['annotations'][0], bbox=[1, 1, 0.5, 10], area=5)
    before = deepcopy(content)
    result = check(content)
    assert result.content == before and not result.is_changed
    assert result.left_out == {'thinner than a pixel': 1}
    assert found(result, 'no extent').severity is Severity.WARNING
    result.findings.raise_errors()


# What has one possible meaning.

def test_ids_from_zero(check, content):
    for n, entry in enumerate(content['annotations']):
        entry['id'] = n
    result = check(content)
    assert [entry['id'] for entry in result.content['annotations']] == list(range(1, 8))
    assert result.is_changed and 'numbered from 1' in found(result, 'repaired').message


@pytest.mark.parametrize('ids', [
    [f'a{n}' for n in range(7)], [1] * 7, [None] * 7, [2**63 + n for n in range(7)],
    [-1, *range(1, 7)], [True, *range(2, 8)], [[1]] * 7])
def test_ids_that_evaluators_misread(check, content, ids):
    for entry, number in zip(content['annotations'], ids, strict=True):
        entry['id'] = number
    result = check(content)
    result.findings.raise_errors()
    assert [entry['id'] for entry in result.content['annotations']] == list(range(1, 8))


def test_ids_that_are_texts(check, content):
    boxes = [(entry['image_id'], entry['category_id'], entry['bbox'])
             for entry in content['annotations']]
    for entry in content['annotations']:
        entry.update(image_id=f'i{entry["image_id"]}', category_id=str(entry['category_id']))
    for image in content['images']:
        image['id'] = f'i{image["id"]}'
    for category in content['categories']:
        category['id'] = str(category['id'])
    result = check(content)
    result.findings.raise_errors()
    assert [(entry['image_id'], entry['category_id'], entry['bbox'])
            for entry in result.content['annotations']] == boxes
    assert [image['id'] for image in result.content['images']] == [1, 2, 3]
    assert [category['id'] for category in result.content['categories']] == [1, 2]
    assert result.is_changed


def test_ids_that_are_floats(check, content):
    for entry in content['annotations']:
        entry.update(id=float(entry['id']), image_id=float(entry['image_id']))
    result = check(content)
    assert all(type(entry[key]) is int for entry in result.content['annotations']
               for key in ('id', 'image_id'))
    assert result.is_changed


@pytest.mark.parametrize('value', [0, None, -1, float('nan'), 'x'])
def test_area_that_is_nowhere_valid(check, content, value):
    for entry in content['annotations']:
        entry['area'] = value
    result = check(content)
    result.findings.raise_errors()
    assert [entry['area'] for entry in result.content['annotations']] == [
        600, 1000, 8000, 100, 108, 900, 80]  # of the polygons; the last of the run-length code
    assert result.is_changed


def test_missing_fields(check, content):
    del content['info']
    for entry in content['annotations']:
        del entry['area']
        if not entry.pop('iscrowd'):
            del entry['bbox']
    result = check(content)
    result.findings.raise_errors()
    first = result.content['annotations'][0]
    assert (first['area'], first['iscrowd'], first['bbox']) == (600, 0, [10, 10, 20, 30])
    assert result.is_changed and 'info' in result.content


def test_area_of_a_box_without_a_mask(check, content):
    del content['annotations'][3]['area'], content['annotations'][3]['segmentation']
    assert check(content).content['annotations'][3]['area'] == 100


@pytest.mark.parametrize('value,expected', [
    (None, 0), ('0', 0), (False, 0), (0.0, 0), (True, 1), ('1', 1), (1.0, 1)])
def test_iscrowd_in_other_forms(check, content, value, expected):
    content['annotations'][0]['iscrowd'] = value
    result = check(content)
    assert result.content['annotations'][0]['iscrowd'] == expected
    assert type(result.content['annotations'][0]['iscrowd']) is int
    assert result.is_changed


def test_ignored_objects_are_not_evaluated(check, content):
    """MMDetection does not learn from them, and pycocotools ignores crowd regions alone."""
    content['annotations'][0]['ignore'] = 1
    content['annotations'][1]['ignore'] = False
    result = check(content)
    assert result.content['annotations'][0]['iscrowd'] == 1
    assert result.content['annotations'][1]['iscrowd'] == 0
    assert result.left_out == {'marked with "ignore"': 1} and accounts_for(result, 7)


def test_polygons(check, content):
    flat = content['annotations'][0]['segmentation'][0]
    content['annotations'][0]['segmentation'] = flat
    content['annotations'][1]['segmentation'].append([1, 2, 3, 4])
    result = check(content, needs_masks=True)
    result.findings.raise_errors()
    assert result.content['annotations'][0]['segmentation'] == [flat]
    assert len(result.content['annotations'][1]['segmentation']) == 1
    assert result.is_changed


@pytest.mark.parametrize('mask', [
    None, [], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, float('nan')]], [[1, 2, 3, 4, 5]], 'x', {},
    dict(size=[80, 100], counts=[8001]), dict(size=[100, 80], counts=[8000]),
    dict(size=[80, 100], counts=[-1, 8001]), dict(size=[80, 100], counts='zzzz'),
    dict(size=[80, 100], counts=''), [[1e300] * 6]])
def test_masks_that_a_model_needs(check, content, mask):
    content['annotations'][0]['segmentation'] = mask
    result = check(content, needs_masks=True)
    refused(result, '1 of 7', 'segmentation', 'annotation 1 (1.jpg)')
    result.findings.raise_errors(skip_invalid=True)
    assert result.left_out == {'without a mask': 1} and accounts_for(result, 7)
    boxes_only = check(content)
    boxes_only.findings.raise_errors()
    assert boxes_only.objects.total() == 6


def test_polygons_that_crash_the_evaluation_are_taken_out(check, content):
    content['annotations'][0]['segmentation'] = [[1, 2, 3, 4]]
    result = check(content)
    assert result.content['annotations'][0]['segmentation'] == [] and result.is_changed


def test_run_length_codes_are_read_as_pycocotools_reads_them():
    torch = pytest.importorskip('torch')
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(37, 53, generator=generator) < (seed + 1) / 21
        mask[5:20, 7:40] = seed % 2
        code = coco_mask.encode(mask.numpy().astype('uint8', order='F'))
        runs = _runs(dict(size=code['size'], counts=code['counts'].decode()))
        assert sum(runs) == 37 * 53 and sum(runs[1::2]) == int(mask.sum())
        values = [bit for i, run in enumerate(runs) for bit in [i % 2] * run]
        assert values == mask.T.flatten().int().tolist()


def test_sizes_from_the_images(check, content):
    headers = {**HEADERS, '2.jpg': ImageHeader(80, 100, 6, 'RGB', 'JPEG')}
    for image in content['images']:
        del image['width'], image['height']
    content['images'][2].update(width=None, height=None)
    result = check(content, headers=headers)
    result.findings.raise_errors()
    assert [(image['width'], image['height']) for image in result.content['images']] == [
        (100, 80)] * 3
    refused(check(content), 'no valid size', 'width and height')


def test_repeated_entries(check, content):
    content['images'].append(dict(content['images'][0]))
    content['categories'].insert(0, dict(id=0, name='dog'))  # Roboflow's group
    result = check(content, classes=['cat', 'dog'])
    result.findings.raise_errors()
    assert [category['id'] for category in result.content['categories']] == [1, 2]
    assert len(result.content['images']) == 3 and result.is_changed
    both = check(content, classes=['dog', 'cat', 'dog'])
    assert [category['id'] for category in both.content['categories']] == [0, 1, 2]


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32'])
def test_encodings_that_mmdetection_can_not_read(check, content, encoding):
    result = check(json.dumps(content).encode(encoding))
    result.findings.raise_errors()
    assert result.is_changed and result.objects.total() == 6


# What needs a decision.

@pytest.mark.parametrize('raw,reason', [
    (b'', 'truncated'), (b'{"images": [', 'truncated'), (b'\xff\xfe\x00', 'truncated'),
    (b'[]', 'a list'), (b'3', 'it has no images'), (b'{"images": []}', 'no annotations'),
    (b'{"images": {}, "annotations": [], "categories": []}', 'images is not a list'),
    (b'{"images": [1], "annotations": [], "categories": []}', 'images is not a list'),
    (b'[' * 100_000, 'nested'), (b'{"a": ' + b'9' * 5000 + b'}', 'truncated')])
def test_files_that_are_not_annotations(check, raw, reason):
    with pytest.raises(UserError, match='not a COCO annotation file') as caught:
        check(raw)
    assert reason in str(caught.value) and '\n' not in str(caught.value)


def test_unreadable_file(tmp_path):
    for path in (tmp_path / 'none.json', tmp_path):
        with pytest.raises(UserError, match='can\'t read'):
            read_coco(path)


@pytest.mark.parametrize('key,value,reason', [
    ('image_id', 9, 'image_id that is not among the images'),
    ('image_id', None, 'image_id'), ('image_id', [1], 'image_id'), ('image_id', True, 'image_id'),
    ('image_id', '1', 'image_id is str there and int where it is declared'),
    ('category_id', '1', 'category_id is str there'),
    ('category_id', 5, 'categories has 1, 2'), ('category_id', {}, 'category_id'),
    ('iscrowd', 2, 'iscrowd'), ('iscrowd', 'yes', 'iscrowd'), ('iscrowd', [], 'iscrowd'),
    ('ignore', 7, 'ignore'),
    ('bbox', [1, 2, 3], 'bbox of four numbers'), ('bbox', 'x', 'bbox'),
    ('bbox', [1, 2, 3, '4'], 'bbox'), ('bbox', [1, 2, float('nan'), 4], 'bbox'),
    ('bbox', [1, 2, float('inf'), 4], 'bbox'), ('bbox', [0, 0, 1e300, 9], 'bbox'),
    ('bbox', [0, 0, 10**400, 9], 'bbox'), ('bbox', [[1], 2, 3, 4], 'bbox'),
    ('bbox', [True, 2, 3, 4], 'bbox'),
    ('bbox', [50, 50, -10, 10], 'negative width or height'),
    ('bbox', [1, 1, 0, 10], 'thinner than one pixel'), ('bbox', [1, 1, 0.5, 9], 'thinner'),
    ('bbox', [100, 5, 10, 10], 'outside'), ('bbox', [-20, 5, 20, 10], 'outside'),
    ('bbox', [5, 900, 10, 10], 'outside'),
    ('area', 0, 'not positive'), ('area', -3, 'not positive'), ('area', '9', 'not a number'),
    ('area', float('nan'), 'not a number'), ('area', 1e300, 'larger than their image'),
    ('area', 9000, 'larger')])
def test_invalid_objects(check, content, key, value, reason):
    content['annotations'][0][key] = value
    result = check(content, headers=HEADERS)
    refused(result, '1 of 7 annotations', reason, '--skip-invalid-objects', 'annotation 1 (')
    result.findings.raise_errors(skip_invalid=True)
    assert accounts_for(result, 7) and result.left_out.total() == 1 and result.is_changed
    assert [entry['id'] for entry in result.content['annotations']] == list(range(2, 8))


def test_missing_bbox_and_polygons(check, content):
    del content['annotations'][0]['bbox'], content['annotations'][0]['segmentation']
    refused(check(content), 'no bbox')


@pytest.mark.parametrize('shift', [-1, 3])
def test_categories_that_count_from_elsewhere(check, content, shift):
    for entry in content['annotations']:
        entry['category_id'] += shift
    refused(check(content), 'category_id', f'they count from {1 + shift}, and categories from 1')


@pytest.mark.parametrize('categories,reason', [
    ([], 'categories is empty'), ([dict(id=1)], 'needs an id and a name'),
    ([dict(name='cat'), dict(id=1, name='b'), dict(id=2, name='b')], 'needs an id and a name'),
    ([dict(id=[1], name='cat')], 'needs an id'), ([dict(id=1, name=None)], 'needs an id'),
    ([dict(id=1, name='cat'), dict(id=1, name='dog')], "category id 1 stands for 'cat' and"),
    ([dict(id=1, name='cat'), dict(id=2, name='cat')], "all called 'cat'")])
def test_categories(check, content, categories, reason):
    content['categories'] = categories
    refused(check(content), reason)


def test_category_names_that_are_numbers(check, content):
    content['categories'][0]['name'] = 7
    result = check(content)
    assert result.content['categories'][0]['name'] == '7' and result.is_changed


@pytest.mark.parametrize('change,reason', [
    (dict(id=1), 'image id 1 stands for 1.jpg and for 2.jpg'), (dict(id=None), 'needs an id'),
    (dict(id=[2]), 'needs an id'), (dict(file_name=None), 'a file_name'),
    (dict(file_name=''), 'a file_name'), (dict(file_name=['2.jpg']), 'a file_name')])
def test_images(check, content, change, reason):
    content['images'][1].update(change)
    refused(check(content), reason)


@pytest.mark.parametrize('change', [
    dict(width=-1, height=-1), dict(width=0), dict(width='100'), dict(height=80.5),
    dict(width=float('nan')), dict(width=10**400), dict(width=10**9), dict(height=None)])
def test_sizes_that_are_none(check, content, change):
    content['images'][0].update(change)
    refused(check(content, headers=HEADERS), '1.jpg has', 'its image is 100x80')
    refused(check(content), 'no valid size')


@pytest.mark.parametrize('size', [(80, 100), (50, 40), (101, 80)])
def test_sizes_of_other_images(check, content, size):
    content['images'][0].update(width=size[0], height=size[1])
    refused(check(content, headers=HEADERS), f'1.jpg is {size[0]}x{size[1]} (width x height)',
            '100x80')


def test_turned_photographs(check, content):
    """Objects annotated on the pixels as stored, as displayed, and where the size can't tell."""
    stored, displayed, unknown = content['images']
    headers = {'1.jpg': ImageHeader(100, 80, 6), '2.jpg': ImageHeader(80, 100, 8),
               '3.jpg': ImageHeader(100, 80, 3)}
    result = check(content, headers=headers)
    result.findings.raise_errors()
    assert found(result, 'orientation').examples == (unknown['file_name'],)
    assert (stored['width'], displayed['width']) == (100, 100)


def test_images_that_can_not_be_read(check, content):
    headers = {**HEADERS, '2.jpg': ImageHeader(error='it is empty')}
    refused(check(content, headers=headers), '1 of 3 images can\'t be read: 2.jpg (it is empty)')


def test_no_images(check, content):
    content['images'] = []
    refused(check(content), 'images is empty')


def test_fractions(check, content):
    for entry in content['annotations']:
        entry['bbox'] = [value / 100 for value in entry['bbox']]
    refused(check(content), 'between 0 and 1', 'pixels', skip_invalid=True)


def test_corners(check, content):
    for entry in content['annotations']:
        x, y, width, height = entry['bbox']
        entry['bbox'] = [x, y, x + width, y + height]
    content['annotations'][0]['bbox'] = [60, 60, 90, 79]
    refused(check(content), 'all would fit as corners', skip_invalid=True)


def test_boxes_that_reach_beyond(check, content):
    content['annotations'][0]['bbox'] = [-5, 10, 20, 30]
    result = check(content)
    result.findings.raise_errors()
    assert found(result, 'beyond').examples == ('annotation 1 (1.jpg)',)
    assert result.objects.total() == 6


@pytest.mark.parametrize('change,reason', [
    (lambda content: content.update(annotations=[]), 'annotations is empty'),
    (lambda content: [entry.update(iscrowd=1) for entry in content['annotations']],
     'all are crowd regions'),
    (lambda content: [entry.update(ignore=1) for entry in content['annotations']],
     '7 marked with "ignore"')])
def test_nothing_to_learn_from(check, content, change, reason):
    change(content)
    refused(check(content), 'no object to learn from or to evaluate', reason)
    check(content, needs_objects=False).findings.raise_errors()


def test_nothing_is_left_without_invalid_objects(check, content):
    for entry in content['annotations']:
        entry['bbox'] = [0, 0, -1, -1]
    result = check(content)
    refused(result, 'negative')
    refused(result, '7 of negative size', skip_invalid=True)


def test_lists_of_test_images(check, content):
    del content['annotations']
    result = check(content, needs_objects=False)
    result.findings.raise_errors()
    assert result.images == 3


def test_objects_that_a_config_leaves_out(check, content):
    content['images'][1].update(width=30, height=90)
    content['annotations'] = content['annotations'][:4]
    result = check(content, classes=['cat'], min_image_size=32)
    assert result.objects == {'cat': 1}
    assert result.left_out == {'of categories that the config does not have': 2,
                               'in images smaller than 32 pixels': 1}
    assert not result.is_changed
    refused(check(content, classes=['bird']), '4 of categories that the config does not have')


def test_twice_the_same(check, content):
    content['annotations'].append(dict(content['annotations'][0], id=8))
    content['images'].append(dict(content['images'][0], id=4))
    result = check(content)
    result.findings.raise_errors()
    assert found(result, 'repeated object').count == 1
    assert '1.jpg' in found(result, 'image listed twice').message


def test_names_on_one_line(check, content):
    """Files may name anything, and a log can't write half of a character."""
    content['images'][0]['file_name'] = 'a\n\ud800.jpg'
    content['annotations'][0]['bbox'] = None
    content['annotations'][0]['segmentation'] = None
    result = check(content)
    refused(result, 'a\\n\\ud800.jpg')
    assert all(text.isprintable() for finding in result.findings
               for text in (finding.message, *finding.examples))


def test_report_as_json(check, content):
    content['annotations'][0]['area'] = -1
    finding = found(check(content), 'area').as_dict()
    assert json.loads(json.dumps(finding)) == finding
    assert finding['severity'] == 'invalid' and finding['count'] == 1
