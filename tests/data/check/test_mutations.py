"""Damaged COCO files, in any way: what a run keeps is right, or one sentence ends it."""

import contextlib
import io
import json
import math
import re
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from coco_files import sound_content
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, init_default_scope
from PIL import Image

from evit_mm.engine.hooks import PreflightHook
from evit_mm.engine.preflight import annotations, findings
from evit_mm.errors import UserError

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

VALUES = [None, True, False, 0, 1, 2, 9, -1, -7.5, 0.25, 0.999, 1.0, 1e-9, 40, 99, 101, 1e7, 1e300,
          10**400, 2**63, float('nan'), float('inf'), -float('inf'), '', '1', '2', 'x', 'a\n\ud800',
          '1.jpg', 'none.jpg', '../1.jpg', [], [1], [[]], {}, {'a': [1]}, [1, 2, 3, 4],
          [10, 10, 30, 30], [0.1, 0.2, 0.3, 0.4], [5, 5, -1, 9], [5, 5, 0, 9], ['1', 2, 3, 4],
          [200, 5, 9, 9], [-30, -30, 40, 40], [1, 2, float('nan'), 4], [[[[[1]]]]],
          {'size': [80, 100], 'counts': [8000]}, {'size': [1, 1], 'counts': 'a'}]
KEYS = {'images': ['id', 'file_name', 'width', 'height'], 'categories': ['id', 'name'],
        'annotations': ['id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd',
                        'segmentation', 'ignore']}
CLASSES = ('cat', 'dog')


# Changes of a content in place. Each takes what it needs from ``draw``.

def pick(draw, content, key=None):
    """Return a list of the content, and the place of an entry in it."""
    key = key or draw(st.sampled_from(['annotations'] * 3 + ['images', 'categories']))
    entries = content.get(key)
    if not isinstance(entries, list) or not entries:
        return key, [{}], 0
    return key, entries, draw(st.integers(0, len(entries) - 1))


def set_value(draw, content):
    key, entries, i = pick(draw, content)
    entries[i][draw(st.sampled_from(KEYS[key]))] = deepcopy(draw(st.sampled_from(VALUES)))


def set_everywhere(draw, content):
    key, entries, _ = pick(draw, content)
    field, value = draw(st.sampled_from(KEYS[key])), draw(st.sampled_from(VALUES))
    for entry in entries:
        entry[field] = deepcopy(value)


def delete_field(draw, content):
    key, entries, i = pick(draw, content)
    field = draw(st.sampled_from(KEYS[key]))
    for entry in entries if draw(st.booleans()) else [entries[i]]:
        entry.pop(field, None)


def repeat_entry(draw, content):
    _, entries, i = pick(draw, content)
    entries.append(deepcopy(entries[i]))


def remove_entry(draw, content):
    _, entries, i = pick(draw, content)
    del entries[i]


def swap_values(draw, content):
    key, entries, i = pick(draw, content)
    _, _, j = pick(draw, content, key)
    field = draw(st.sampled_from(KEYS[key]))
    j = min(j, len(entries) - 1)
    if field in entries[i] and field in entries[j]:
        entries[i][field], entries[j][field] = entries[j][field], entries[i][field]


def replace_part(draw, content):
    key = draw(st.sampled_from([*KEYS, 'info']))
    content[key] = deepcopy(draw(st.sampled_from(VALUES)))


def replace_entry(draw, content):
    _, entries, i = pick(draw, content)
    entries[i] = deepcopy(draw(st.sampled_from(VALUES)))


def change_ids(draw, content):
    """Number otherwise, in one place or in all."""
    change = draw(st.sampled_from([
        str, float, lambda n: n - 1, lambda n: n + 1, lambda n: f'id-{n}', lambda n: n + 2**63,
        lambda n: -n, lambda n: 0, lambda n: [n]]))
    places = [('images', 'id'), ('annotations', 'image_id'), ('categories', 'id'),
              ('annotations', 'category_id'), ('annotations', 'id')]
    single = [[place] for place in places]
    for key, field in draw(st.sampled_from([places, places[:2], places[2:4], *single])):
        for entry in content.get(key) or []:
            with contextlib.suppress(Exception):
                entry[field] = change(entry[field])


def change_boxes(draw, content):
    change = draw(st.sampled_from([
        lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80],
        lambda x, y, w, h: [x, y, x + w, y + h], lambda x, y, w, h: [x + w, y + h, -w, -h],
        lambda x, y, w, h: [x - 60, y, w, h], lambda x, y, w, h: [x, y, 0, h],
        lambda x, y, w, h: [x, y, w, h, 1], lambda x, y, w, h: [[x, y], [w, h]],
        lambda x, y, w, h: [str(x), y, w, h], lambda x, y, w, h: {'x': x},
        lambda x, y, w, h: [x * 2, y * 2, w * 2, h * 2]]))
    some = draw(st.sampled_from([1, 2, 3, 7]))
    for n, entry in enumerate(content.get('annotations') or []):
        with contextlib.suppress(Exception):
            if n % some == 0:
                entry['bbox'] = change(*entry['bbox'])


def change_sizes(draw, content):
    change = draw(st.sampled_from([
        lambda w, h: (h, w), lambda w, h: (w // 2, h // 2), lambda w, h: (str(w), str(h)),
        lambda w, h: (float(w), float(h)), lambda w, h: (None, None), lambda w, h: (-1, -1)]))
    for image in content.get('images') or []:
        with contextlib.suppress(Exception):
            image['width'], image['height'] = change(image['width'], image['height'])


CHANGES = [*[set_value] * 3, set_everywhere, *[delete_field] * 2, repeat_entry, remove_entry,
           swap_values, replace_part, replace_entry, change_ids, change_boxes, change_sizes]


@st.composite
def damaged_files(draw) -> bytes:
    """Draw the bytes of a damaged file."""
    content = sound_content()
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3)):
        with contextlib.suppress(AttributeError, TypeError):  # an earlier change took the place
            change(draw, content)
    raw = json.dumps(content).encode()
    form = draw(st.sampled_from(['as it is'] * 12 + ['cut', 'byte', 'encoding']))
    if form == 'cut':
        return raw[:draw(st.integers(0, len(raw)))]
    if form == 'byte':
        place = draw(st.integers(0, len(raw) - 1))
        return raw[:place] + bytes([draw(st.integers(0, 255))]) + raw[place + 1:]
    return raw.decode().encode(draw(st.sampled_from(['utf-8-sig', 'utf-16', 'utf-32']))) \
        if form == 'encoding' else raw


# What a run does with them.

class Folder:
    """A data root with three images and an annotation file to replace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / 'mine.json'
        for n in (1, 2, 3):
            Image.new('RGB', (100, 80)).save(root / f'{n}.jpg')

    def config(self) -> Config:
        dataset = dict(type='CocoDataset', data_root=str(self.root), ann_file='mine.json',
                       data_prefix=dict(img=''), metainfo=dict(classes=CLASSES), pipeline=[],
                       test_mode=True)
        return Config(dict(default_scope='mmdet', val_dataloader=dict(dataset=dataset),
                           val_evaluator=dict(type='CocoMetric', ann_file=str(self.file),
                                              metric='bbox')))


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> Folder:
    return Folder(tmp_path_factory.mktemp('damaged'))


def whole(value: Any) -> str:
    """Return an id as it is written, with 1.0 as 1."""
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


def objects_of(content: dict[str, Any]) -> tuple[Counter, Counter]:
    """Return the objects that a file may mean, and those that it certainly means.

    Each is a tuple of file name, class and box. This knows nothing of the checks.
    """
    images = {whole(image['id']): image for image in content['images']}
    names = {whole(category['id']): str(category['name']) for category in content['categories']}
    possible: Counter = Counter()
    certain: Counter = Counter()
    for entry in content['annotations']:
        image = images.get(whole(entry.get('image_id')))
        name = names.get(whole(entry.get('category_id')))
        box = entry.get('bbox')
        if not box and isinstance(entry.get('segmentation'), list) and entry['segmentation']:
            polygons = entry['segmentation']
            points = polygons[0] if isinstance(polygons[0], list) else polygons
            with contextlib.suppress(TypeError, ValueError):
                box = [min(points[::2]), min(points[1::2]), max(points[::2]) - min(points[::2]),
                       max(points[1::2]) - min(points[1::2])]
        if image is None or name not in CLASSES or not isinstance(box, list) or len(box) != 4 \
                or not all(type(value) in (int, float) and abs(value) < 1e9 for value in box):
            continue
        what = (image['file_name'], name, *(round(float(value), 3) for value in box))
        possible[what] += 1
        x, y, w, h = box
        inside = w >= 1 and h >= 1 and x < 100 and y < 80 and x + w > 0 and y + h > 0
        area = entry.get('area', 1)
        if inside and entry.get('iscrowd', 0) in (0, False) and entry.get('ignore') in (None, 0) \
                and type(area) in (int, float) and math.isfinite(area) and 0 < area <= 8000:
            certain[what] += 1
    return possible, certain


def perfect_ap(config: Config) -> tuple[Counter, float]:
    """Return the objects of the built dataset, and the AP of predicting exactly these."""
    dataset = DATASETS.build(config.val_dataloader.dataset)
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    kept: Counter = Counter()
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        truth = [part for part in info['instances'] if not part['ignore_flag']]
        for part in truth:
            x1, y1, x2, y2 = part['bbox']
            kept[(Path(info['img_path']).name, CLASSES[part['bbox_label']],
                  *(round(float(value), 3) for value in (x1, y1, x2 - x1, y2 - y1)))] += 1
        metric.process({}, [dict(
            img_id=info['img_id'], ori_shape=(info['height'], info['width']),
            pred_instances=dict(
                bboxes=torch.tensor([part['bbox'] for part in truth]).float().reshape(-1, 4),
                labels=torch.tensor([part['bbox_label'] for part in truth]).long(),
                scores=torch.ones(len(truth))))])
    return kept, metric.evaluate(len(dataset))['coco/bbox_mAP']


def try_out(folder: Folder, raw: bytes, said: list[str], **tolerated: bool) -> str:
    """Do with a file what a run does; return the sentence that ends it, or ''."""
    folder.file.write_bytes(raw)
    config = folder.config()
    said.clear()
    try:
        PreflightHook(**tolerated).check_config(config, ['val'], repaired=folder.root / 'repaired')
    except UserError as error:
        text = str(error)
        assert '\n' not in text and len(text) < 2500 and 'mine.json' in text, text
        return text
    content = json.loads(raw)
    line, = [text for text in said if text.startswith('val: ')]
    used = int(re.search(r'images, (\d+) objects', line)[1])
    crowds = sum(map(int, re.findall(r'(\d+) crowd regions', line)))
    left_out = sum(map(int, re.findall(r'(\d+) ', line.partition('; left out: ')[2])))
    assert used + crowds + left_out == len(content['annotations']), line
    kept, ap = perfect_ap(config)
    assert kept.total() == used, line
    possible, certain = objects_of(content)
    assert kept <= possible, (kept - possible, line)
    assert certain <= kept, (certain - kept, line)
    # Objects that training passes over and the evaluation counts are announced.
    uncounted = any('evaluation counts them' in text for text in said)
    assert ap == 1.0 or uncounted, (ap, line)
    return ''


def check_property(folder: Folder, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Try damaged files; at least a share of them must be usable, or nothing is tested."""
    init_default_scope('mmdet')
    said: list[str] = []
    for module in (annotations, findings):
        monkeypatch.setattr(module, 'print_log', lambda text, **_: said.append(text))
    outcomes: Counter = Counter()

    @hypothesis.settings(max_examples=count, deadline=None, database=None, derandomize=True,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(damaged_files(), st.booleans(), st.booleans())
    def try_one(raw: bytes, skip: bool, ignore: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            sentence = try_out(folder, raw, said, skip_invalid_objects=skip,
                               ignore_unknown_categories=ignore)
        outcomes['refused' if sentence else 'used'] += 1

    try_one()
    assert outcomes.total() >= count
    assert min(outcomes['used'], outcomes['refused']) > count // 10, outcomes


def test_sound_file(folder, monkeypatch):
    init_default_scope('mmdet')
    said: list[str] = []
    for module in (annotations, findings):
        monkeypatch.setattr(module, 'print_log', lambda text, **_: said.append(text))
    assert not try_out(folder, json.dumps(sound_content()).encode(), said)
    assert len(said) == 1


def test_damaged_files(folder, monkeypatch):
    check_property(folder, monkeypatch, 100)


@pytest.mark.slow
def test_thousands_of_damaged_files(folder, monkeypatch):
    check_property(folder, monkeypatch, 2500)
