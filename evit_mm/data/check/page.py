"""The outcome of a check as one HTML file: counts, sizes of boxes, and labelled pictures."""

import base64
import importlib.util
import math
import os
from collections import Counter
from html import escape
from random import Random
from typing import Any

import numpy as np

from ...errors import UserError
from ...files import write_atomically
from .dataset import DatasetCheck, SplitCheck
from .findings import Finding

__all__ = ['write_page']

_PICTURES = 12  # of each split
_HEIGHT = 260  # pixels of a picture on the page
_STYLE = '''
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #1d2430; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccd; }
table { border-collapse: collapse; margin: .6rem 0; }
td, th { padding: .1rem .7rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #4775d1; height: .8rem; display: inline-block; vertical-align: middle; }
.error, .invalid { color: #a40018; } .warning { color: #8a5300; }
.repaired, .note { color: #47525f; }
.columns { display: flex; flex-wrap: wrap; gap: 2.5rem; align-items: flex-start; }
.sheet { display: flex; flex-wrap: wrap; gap: .6rem; } figure { margin: 0; }
figcaption { font-size: .75rem; color: #555; max-width: 24rem; overflow-wrap: anywhere; }
li { overflow-wrap: anywhere; }
'''


def write_page(check: DatasetCheck, path: str | os.PathLike[str]) -> None:
    """Write a self-contained page about a checked dataset.

    Args:
        check: The outcome of `check_dataset`.
        path: The HTML file.

    Raises:
        UserError: If it can't be written, or supervision, which draws the boxes, is missing.
    """
    if importlib.util.find_spec('supervision') is None:
        raise UserError('a page is drawn with supervision, which is not installed: '
                        'pip install supervision')
    stopping = len(check.stopping)
    verdict = f'A run would stop: {stopping} fault{"s" * (stopping > 1)} to mend.' if stopping \
        else 'A run would start.'
    parts = [f'<h1>Check of a dataset</h1><p class="{"error" if stopping else "note"}">{verdict}'
             '</p>', _findings(check.findings)]
    for split in check.splits:
        parts.append(_split(split))
    with write_atomically(path) as file:
        file.write('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
                   f'<title>Check of a dataset</title><style>{_STYLE}</style></head>\n<body>'
                   + '\n'.join(parts) + '</body></html>\n')


def _split(split: SplitCheck) -> str:
    title = split.name + (f' <small>{escape(str(split.coco.path))}</small>' if split.coco else '')
    parts = [f'<h2>{title}</h2>', _findings(split.findings)]
    if split.coco:
        coco = split.coco
        parts.append(f'<p>{coco.images} images, {coco.empty_images} of them without an object; '
                     f'{coco.objects.total()} objects, {coco.crowds} crowd regions'
                     + (f'; left out: {escape(coco.describe_left_out())}' if coco.left_out else '')
                     + '.</p>')
        parts.append(f'<div class="columns">{_classes(split)}{_box_sizes(split)}</div>')
        parts.append(f'<div class="sheet">{"".join(_pictures(split))}</div>')
    return '\n'.join(parts)


def _findings(findings: list[Finding]) -> str:
    items = [f'<li class="{finding.severity.value}"><b>{finding.severity.value}</b> '
             f'{escape(finding.message)}</li>' for finding in findings]
    return f'<ul>{"".join(items)}</ul>' if items else ''


def _classes(split: SplitCheck) -> str:
    assert split.coco is not None
    most = max(split.coco.objects.values(), default=0) or 1
    rows = [f'<tr><td>{escape(name)}</td><td class="number">{count}</td>'
            f'<td class="number">{split.class_images[name]}</td>'
            f'<td><span class="bar" style="width:{160 * count / most:.0f}px"></span></td></tr>'
            for name, count in split.coco.objects.items()]
    return ('<table><tr><th>class</th><th>objects</th><th>images</th><th></th></tr>'
            + ''.join(rows) + '</table>')


def _box_sizes(split: SplitCheck) -> str:
    """Return a histogram of the sides of boxes, the square roots of their areas."""
    sides = [math.sqrt(width * height) for width, height in split.boxes if width * height > 0]
    if not sides:
        return ''
    bins = Counter(max(0, math.floor(2 * math.log2(side))) for side in sides)
    first, last, most = min(bins), max(bins), max(bins.values())
    step, height = 34, 150
    bars = []
    for i, number in enumerate(range(first, last + 1)):
        tall = height * bins[number] / most
        x = i * step + 4
        bars.append(f'<rect x="{x}" y="{height - tall + 16:.1f}" width="{step - 6}" '
                    f'height="{tall:.1f}" fill="#4775d1"/>')
        if bins[number]:
            bars.append(f'<text x="{x + step / 2 - 3}" y="{height - tall + 12:.1f}" '
                        f'text-anchor="middle">{bins[number]}</text>')
        bars.append(f'<text x="{x}" y="{height + 32}" text-anchor="middle">'
                    f'{2 ** (number / 2):.0f}</text>')
    return (f'<div>sides of the boxes, in pixels (square root of the area)<br>'
            f'<svg width="{(last - first + 1) * step + 20}" height="{height + 40}" '
            f'font-size="11" font-family="sans-serif">{"".join(bars)}</svg></div>')


def _pictures(split: SplitCheck) -> list[str]:
    """Return pictures with their boxes, chosen so that they show as many classes as possible."""
    assert split.coco is not None
    content = split.coco.content
    names = {category['id']: category['name'] for category in content['categories']}
    labels = list(split.coco.objects)
    objects: dict[Any, list[dict[str, Any]]] = {}
    if split.coco.objects.total():
        for entry in content['annotations']:
            if names[entry['category_id']] in split.coco.objects and not entry['iscrowd']:
                objects.setdefault(entry['image_id'], []).append(entry)
    images = {image['id']: image for image in content['images'] if image.get('id') in objects
              and not getattr(split.headers.get(image['file_name']), 'error', 'unread')}
    pictures = []
    for number in _choice({number: {names[entry['category_id']] for entry in objects[number]}
                           for number in images}):
        image = images[number]
        name = image['file_name']
        try:
            drawn = _draw(split.files[name], image, objects[number], names, labels)
        except UserError as error:
            pictures.append(f'<figure><figcaption class="error">{escape(str(error))}</figcaption>'
                            '</figure>')
            continue
        pictures.append(f'<figure><img src="data:image/jpeg;base64,{drawn}" height="{_HEIGHT}">'
                        f'<figcaption>{escape(name)}</figcaption></figure>')
    return pictures


def _choice(classes: dict[Any, set[str]]) -> list[Any]:
    """Choose images at random, those that show a class for the first time before others."""
    order = list(classes)
    Random(0).shuffle(order)
    seen: set[str] = set()
    first: list[Any] = []
    others: list[Any] = []
    for number in order:
        (others if classes[number] <= seen else first).append(number)
        seen |= classes[number]
    return (first + others)[:_PICTURES]


def _draw(path: str, image: dict[str, Any], objects: list[dict[str, Any]], names: dict[Any, str],
          labels: list[str]) -> str:
    """Return an image with its boxes as JPEG in base64.

    Raises:
        UserError: If the image can't be loaded.
    """
    import cv2
    import supervision as sv

    from ..loading import CheckedLoadImage

    loaded = CheckedLoadImage()(dict(img_path=path, width=image['width'], height=image['height']))
    assert loaded is not None
    factor = 2 * _HEIGHT / image['height']  # for screens of a high resolution
    scene = cv2.resize(loaded['img'], (max(1, round(factor * image['width'])), 2 * _HEIGHT),
                       interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    boxes = np.array([entry['bbox'] for entry in objects], float) * factor
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, [scene.shape[1], scene.shape[0]] * 2)
    detections = sv.Detections(
        xyxy=boxes, class_id=np.array([labels.index(names[entry['category_id']])
                                       for entry in objects]))
    scene = sv.BoxAnnotator(thickness=2).annotate(scene, detections)
    scene = sv.LabelAnnotator(text_scale=0.5, text_padding=3, smart_position=True,
                              text_color=sv.Color.BLACK).annotate(
        scene, detections, labels=[names[entry['category_id']] for entry in objects])
    return base64.b64encode(cv2.imencode('.jpg', scene, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
                            .tobytes()).decode()
