"""COCO annotation files: what is in them, what is wrong, and what follows from the rest.

MMDetection leaves objects out without a word if their category, image, area or box is not as it
expects, and pycocotools gives a wrong AP for ids that start at 0. Here every fault is found and
counted. What has only one possible meaning is repaired in memory; the rest needs a decision.
"""

import codecs
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ...errors import UserError
from .findings import Findings, Severity, shorten
from .image_headers import ImageHeader

__all__ = ['CocoCheck', 'check_coco', 'read_coco']

_KEYS = ('images', 'annotations', 'categories')
# Up to these shares, objects that can't be learnt from are left out with a warning: public datasets
# have a few. They stay in the file for the evaluation, which treats them as the usual tools do.
_FEW = {'no extent': 0.1, 'outside': 0.01, 'area': 0.01}
_BEYOND = 2  # pixels by which a box may reach beyond its image, from rounding
_LARGEST = 10**6  # pixels; no side of an image and no coordinate is larger
# Larger ids don't fit the 64 bits of numpy and of faster evaluators.
_LARGEST_ID = 2**63 - 1
_Object = dict[str, Any]


@dataclass
class CocoCheck:
    """A checked annotation file.

    Attributes:
        path: The file.
        content: Its content as it can be used: repaired, and without the invalid objects.
        findings: What was found.
        is_changed: Whether ``content`` differs from the file.
        objects: Usable objects of each class, without crowds; classes in the file's order.
        crowds: Number of crowd regions.
        images: Number of images.
        empty_images: Number of images without a usable object.
        left_out: Objects that are not used, by reason.
    """

    path: Path
    content: dict[str, Any]
    findings: Findings = field(default_factory=Findings)
    is_changed: bool = False
    objects: Counter[str] = field(default_factory=Counter)
    crowds: int = 0
    images: int = 0
    empty_images: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """Return a line that accounts for every object of the file."""
        used = self.objects.total()
        text = (f'{self.path}: {self.images} images, {used} objects of '
                f'{sum(map(bool, self.objects.values()))} classes')
        if self.crowds:
            text += f', {self.crowds} crowd regions'
        if self.empty_images:
            text += f', {self.empty_images} images without an object'
        if self.left_out:
            text += f'; left out: {self.describe_left_out()}'
        return text

    def describe_left_out(self) -> str:
        """Return the numbers of objects that are left out, and why."""
        return ', '.join(f'{count} {reason}' for reason, count in self.left_out.items())


def read_coco(path: Path, *, needs_objects: bool = True) -> dict[str, Any]:
    """Read a COCO annotation file.

    Args:
        path: The file.
        needs_objects: Whether it must have annotations; lists of test images have none.

    Raises:
        UserError: If it can't be read, or is not one.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f'can\'t read {path}: {error.strerror or error}') from error
    except RecursionError as error:
        raise UserError(f'{path} is not a COCO annotation file: it is nested too deeply') from error
    except ValueError as error:  # among them those of json and of the encoding
        reason = str(error).splitlines()[0]
        raise UserError(f'{path} is not a COCO annotation file, or is truncated: {reason}'
                        ) from error
    if isinstance(content, dict) and not needs_objects:
        content.setdefault('annotations', [])
    if isinstance(content, list):
        raise UserError(f'{path} is not a COCO annotation file: it holds a list, as files of '
                        'detections do, instead of images, annotations and categories')
    missing = [key for key in _KEYS if key not in content] if isinstance(content, dict) else _KEYS
    if missing:
        raise UserError(f'{path} is not a COCO annotation file: it has no {", ".join(missing)}')
    for key in _KEYS:
        if not isinstance(content[key], list) or not all(
                isinstance(entry, dict) for entry in content[key]):
            raise UserError(f'{path} is not a COCO annotation file: {key} is not a list of objects')
    return content


def check_coco(path: Path, *, headers: Mapping[str, ImageHeader] | None = None,
               classes: Sequence[str] | None = None, needs_masks: bool = False,
               needs_objects: bool = True, min_image_size: float = 0,
               content: dict[str, Any] | None = None) -> CocoCheck:
    """Check a COCO annotation file.

    Args:
        path: The file.
        headers: Headers of its images by file name, as far as they were read.
        classes: Names of the categories that are used; None uses all.
        needs_masks: Whether every object needs a mask.
        needs_objects: Whether it must have objects; lists of test images have none.
        min_image_size: Side in pixels below which images are not used.
        content: The content, if it has been read already; it is changed.

    Returns:
        CocoCheck: All faults, and the content without them.

    Raises:
        UserError: If it is not a COCO annotation file.
    """
    if content is None:
        content = read_coco(path, needs_objects=needs_objects)
    check = CocoCheck(path, content)
    _Checker(check, headers or {}, classes, needs_masks, needs_objects, min_image_size).run()
    return check


class _Checker:
    """One pass over an annotation file; collects faults by kind and reports each kind once."""

    def __init__(self, check: CocoCheck, headers: Mapping[str, ImageHeader],
                 classes: Sequence[str] | None, needs_masks: bool, needs_objects: bool,
                 min_image_size: float) -> None:
        self.check = check
        self.path = check.path
        self.headers = headers
        self.classes = classes
        self.needs_masks = needs_masks
        self.needs_objects = needs_objects
        self.min_image_size = min_image_size
        self.invalid: dict[str, list[str]] = defaultdict(list)
        self.repairs: Counter[str] = Counter()
        self.faults: dict[int, str] = {}  # by the object's identity
        self.few: frozenset[str] = frozenset()
        self.images: dict[Any, _Object] = {}
        self.sizes: dict[Any, tuple[int, int]] = {}  # of the images whose size is known
        self.categories: dict[Any, str] = {}

    def run(self) -> None:
        content, check = self.check.content, self.check
        self.categories = self._check_categories(content['categories'])
        self.images = self._check_images(content['images'])
        if check.findings.of(Severity.ERROR):
            return  # no object can be judged
        self._drop_repeated_categories()
        self._check_sizes()
        self._check_area_fields(content['annotations'])
        objects = self._check_objects(content['annotations'])
        self._check_boxes_as_a_whole(objects)
        self._report_invalid(len(content['annotations']))
        check.is_changed = len(objects) < len(content['annotations'])
        content['annotations'] = objects
        content['images'] = list(self.images.values())
        self._renumber(objects)
        self._count(objects)
        content.setdefault('info', {})  # pycocotools 2.0.9 reads it
        if not _is_plain_text(self.path):
            self.repairs['written as UTF-8 without a byte order mark'] += 1
        if self.repairs:
            check.is_changed = True
            check.findings.add('repaired', Severity.REPAIRED, f'{self.path}: ' + ', '.join(
                f'{text} ({count} times)' if count > 1 else text
                for text, count in self.repairs.items()))

    def _error(self, kind: str, message: str, examples: Sequence[str] = ()) -> None:
        self.check.findings.add(kind, Severity.ERROR, f'{self.path}: {message}', examples)

    def _warn(self, kind: str, message: str, examples: Sequence[str] = ()) -> None:
        self.check.findings.add(kind, Severity.WARNING, f'{self.path}: {message}', examples)

    def _replace(self, entry: _Object, key: str, value: Any, repair: str) -> None:
        """Set a value, which is a repair if it is another, or of another type."""
        if type(entry.get(key)) is not type(value) or entry[key] != value:
            entry[key] = value
            self.repairs[repair] += 1

    # Categories and images.

    def _check_categories(self, categories: list[_Object]) -> dict[Any, str]:
        names: dict[Any, str] = {}
        for category in categories:
            number, name = _identifier(category.get('id')), category.get('name')
            if number is None or not isinstance(name, str | int) or isinstance(name, bool):
                self._error('category', f'the category {_short(category)} needs an id and a name')
                continue
            if number in names:
                self._error('category id', f'the category id {number!r} stands for '
                            f'{names[number]!r} and for {name!r}: give each category its own id')
            names[number] = str(name)
            self._replace(category, 'id', number, 'ids written as whole numbers')
            self._replace(category, 'name', str(name), 'names of categories written as text')
        if not categories:
            self._error('no categories', 'categories is empty: list an id and a name for each '
                        'class')
        return names

    def _drop_repeated_categories(self) -> None:
        """Drop categories without objects whose name another one has too, as Roboflow's group has.

        MMDetection would count both as classes.
        """
        counts = Counter(self.categories.values())
        used = {_identifier(entry.get('category_id'))
                for entry in self.check.content['annotations']}
        for name, count in counts.items():
            numbers = [number for number, other in self.categories.items() if other == name]
            surplus = count - (1 if self.classes is None else list(self.classes).count(name))
            if count == 1 or surplus <= 0 or self.classes is not None and name not in self.classes:
                continue
            unused = [number for number in numbers if number not in used][:surplus]
            if len(unused) < surplus:
                self._error('category name', f'the categories {shorten(map(repr, numbers))} are '
                            f'all called {name!r}: merge them, or give them names of their own')
                continue
            for number in unused:
                del self.categories[number]
                self.repairs[f'left out a second category {name!r}, which has no object'] += 1
        self.check.content['categories'] = [
            category for category in self.check.content['categories']
            if category['id'] in self.categories]

    def _check_images(self, images: list[_Object]) -> dict[Any, _Object]:
        by_id: dict[Any, _Object] = {}
        shared: dict[Any, list[str]] = defaultdict(list)
        for position, image in enumerate(images):
            number, file = _identifier(image.get('id')), image.get('file_name')
            if number is None or not isinstance(file, str) or not file:
                self._error('image', f'entry {position} of images needs an id and a file_name, '
                            f'but is {_short(image)}')
                continue
            self._replace(image, 'id', number, 'ids written as whole numbers')
            if number not in by_id:
                by_id[number] = image
            elif by_id[number]['file_name'] == file:
                self.repairs['left out repeated entries of an image'] += 1
            else:
                shared[number] += [by_id[number]['file_name'], file]
        if shared:
            number, files = next(iter(shared.items()))
            self._error('image id', f'the image id {number!r} stands for {files[0]} and for '
                        f'{files[1]}' + (f', and so do {len(shared) - 1} other ids for two images'
                                         if len(shared) > 1 else '')
                        + ': files were merged without new ids, so that it is unknown which image '
                        'an object belongs to; merge them again with new image ids',
                        [f'{number!r}: {", ".join(files)}' for number, files in shared.items()])
        if not images:
            self._error('no images', 'images is empty')
        counts = Counter(image['file_name'] for image in by_id.values())
        repeated = [file for file, count in counts.items() if count > 1]
        if repeated:
            self._warn('image listed twice', f'{len(repeated)} image files are listed under '
                       'several ids, so that each entry lacks the objects of the others: '
                       f'{shorten(repeated)}; merge their entries', repeated)
        return by_id

    def _check_sizes(self) -> None:
        images = self.images
        wrong, unknown, unread, turned = [], [], [], []
        for number, image in images.items():
            file = image['file_name']
            header = self.headers.get(file)
            size = _size(image)
            if header is not None and header.error:
                unread.append(f'{file} ({header.error})')
                continue
            if header is not None and image.get('width') is image.get('height') is None:
                size = header.displayed_size
                image.update(width=size[0], height=size[1])
                self.repairs['width and height taken from the image'] += 1
            if size is None:
                values = f'{_short(image.get("width"))}x{_short(image.get("height"))}'
                unknown.append(f'{file} has {values}' + (
                    f', its image is {_by(header.displayed_size)}' if header else ''))
                continue
            for key, value in zip(('width', 'height'), size, strict=True):
                self._replace(image, key, value, f'{key} written as a whole number')
            if header is None or size in (header.size, header.displayed_size):
                self.sizes[number] = size
            if header is None:
                continue
            if size not in (header.size, header.displayed_size):
                wrong.append(f'{file} is {_by(size)} (width x height) in the file, but '
                             f'{_by(header.displayed_size)} as an image')
            elif header.orientation != 1 and size == header.size == header.displayed_size:
                turned.append(file)
        if unread:
            self._error('image file', f'{len(unread)} of {len(images)} images can\'t be read: '
                        f'{shorten(unread)}; replace them, or remove them from the file', unread)
        if unknown:
            self._error('image size', f'{len(unknown)} of {len(images)} images have no valid size: '
                        f'{shorten(unknown)}; set width and height in pixels, or remove both '
                        'fields: they are then read from the images', unknown)
        if wrong:
            self._error('image size', f'{len(wrong)} of {len(images)} images have another size '
                        f'than their annotations were made for: {shorten(wrong, 1)}; correct width '
                        'and height, or use the images that were annotated', wrong)
        if turned:
            self._warn('orientation', f'{len(turned)} images are turned by EXIF\'s orientation, '
                       'and their size does not tell whether the objects were annotated before or '
                       f'after that: {shorten(turned)}; they are loaded as viewers show them',
                       turned)

    # Objects.

    def _check_area_fields(self, objects: list[_Object]) -> None:
        """Drop areas that say nothing: where none is positive, all follow from the objects."""
        areas = [entry.get('area') for entry in objects]
        positive = sum(_is_number(area) and area > 0 for area in areas)
        if objects and not positive:
            present = sum(area is not None for area in areas)
            for entry in objects:
                entry.pop('area', None)
            if present:
                self.repairs['area computed, as it was 0 or not a number in every annotation'] += 1

    def _check_objects(self, objects: list[_Object]) -> list[_Object]:
        """Return the objects that can be used, completed; collect the faults of the others."""
        for position, entry in enumerate(objects):
            fault = self._fault(entry)
            if fault:
                self.invalid[fault].append(self._label(entry, position))
            self.faults[id(entry)] = fault
        few = [kind for kind, share in _FEW.items()
               if len(self.invalid.get(kind, ())) <= share * len(objects)]
        self.few = frozenset(kind for kind in few if self.invalid.get(kind))
        return [entry for entry in objects if self.faults[id(entry)] in ('', *self.few)]

    def _fault(self, entry: _Object) -> str:
        """Complete an object in place, and return what is wrong with it; empty if nothing is."""
        for key, declared in (('image_id', self.images), ('category_id', self.categories)):
            number = _identifier(entry.get(key))
            if number is None or number not in declared:
                return key
            self._replace(entry, key, number, 'ids written as whole numbers')
        for key in ('iscrowd', 'ignore'):
            flag = _flag(entry.get(key))
            if flag is None:
                return key
            if key == 'iscrowd' or entry.get(key) is not None:
                self._replace(entry, key, flag, f'{key} set to 0 where it was missing, or to a '
                                                'number')
        if entry.get('ignore'):
            # pycocotools would count it as missed, though the model is not to find it.
            self._replace(entry, 'iscrowd', 1, 'objects marked with "ignore" left out of the '
                                               'evaluation too')
        self._complete_polygons(entry)
        if not entry.get('bbox') and _polygons(entry):
            entry['bbox'] = _box_of(_polygons(entry))
            self.repairs['bbox computed from the polygons'] += 1
        box = entry.get('bbox')
        if not isinstance(box, list) or len(box) != 4 \
                or not all(_is_number(value) and abs(value) <= _LARGEST for value in box):
            return 'bbox'
        if box[2] < 0 or box[3] < 0:
            return 'negative'
        size = self.sizes.get(entry['image_id'])
        if self.needs_masks and not _has_mask(entry, size):
            return 'segmentation'
        area = entry.get('area')
        if area is None:
            entry['area'] = area = _area(entry)
            self.repairs['area computed'] += 1
        elif not _is_number(area) or size and area > 1.01 * size[0] * size[1]:
            return 'area value'
        if box[2] < 1 or box[3] < 1:  # MMDetection does not learn from them
            return 'no extent'
        if size and (min(box[0] + box[2], size[0]) <= max(box[0], 0)
                     or min(box[1] + box[3], size[1]) <= max(box[1], 0)):
            return 'outside'
        return 'area' if area <= 0 else ''

    def _complete_polygons(self, entry: _Object) -> None:
        """Nest polygons that are not, and drop those with less than three points."""
        polygons = entry.get('segmentation')
        if not isinstance(polygons, list) or not polygons:
            return
        if all(map(_is_number, polygons)):
            polygons = [polygons]
            self.repairs['a polygon written without its outer brackets'] += 1
        valid = [polygon for polygon in polygons if _is_polygon(polygon)]
        if len(valid) < len(polygons):
            self.repairs['left out polygons that are not three or more points [x, y, ...]'] += 1
        entry['segmentation'] = valid

    def _check_boxes_as_a_whole(self, objects: list[_Object]) -> None:
        """Recognise boxes of another format, which no single box can tell."""
        objects = [entry for entry in objects
                   if not self.faults[id(entry)] and entry['image_id'] in self.sizes]
        boxes = [(entry['bbox'], *self.sizes[entry['image_id']]) for entry in objects]
        # Fractions are thinner than a pixel.
        tiny = self.invalid.get('no extent', [])
        fractions = self._count_fractions()
        if fractions and fractions >= 0.5 * (len(boxes) + len(tiny)):
            self.invalid.pop('no extent', None)
            self._error('fractions', f'{fractions} boxes lie between 0 and 1: bbox must be '
                        '[x, y, width, height] in pixels, not in fractions of the image')
            return
        beyond = [entry for entry, (box, width, height) in zip(objects, boxes, strict=True)
                  if box[0] < -_BEYOND or box[1] < -_BEYOND
                  or box[0] + box[2] > width + _BEYOND or box[1] + box[3] > height + _BEYOND]
        corners = sum(box[2] > box[0] and box[3] > box[1] and box[2] <= width + 1
                      and box[3] <= height + 1 for box, width, height in boxes)
        if len(beyond) >= max(3, 0.2 * len(boxes)) and corners >= 0.95 * len(boxes):
            self._error('corners', f'{len(beyond)} of {len(boxes)} boxes reach beyond their image, '
                        'and all would fit as corners: bbox must be [x, y, width, height], not '
                        '[x1, y1, x2, y2]')
        elif beyond:
            examples = [self._label(entry) for entry in beyond]
            self._warn('beyond', f'{len(beyond)} of {len(boxes)} boxes reach beyond their image '
                       f'by more than {_BEYOND} pixels, where a model can\'t find them: '
                       f'{shorten(examples)}', examples)

    def _count_fractions(self) -> int:
        return sum(
            1 for entry in self.check.content['annotations']
            if isinstance(box := entry.get('bbox'), list) and len(box) == 4
            and all(_is_number(value) and 0 <= value <= 1 for value in box) and max(box) > 0
            and any(value % 1 for value in box))

    def _report_invalid(self, total: int) -> None:
        texts = {
            'image_id': 'have an image_id that is not among the images',
            'category_id': f'have a category_id that is not declared: categories has '
                           f'{shorten([repr(key) for key in self.categories], 5)}',
            'iscrowd': 'have an iscrowd that is neither 0 nor 1',
            'ignore': 'have an "ignore" that is neither 0 nor 1',
            'bbox': 'have no bbox of four numbers [x, y, width, height] in pixels',
            'negative': 'have a bbox of negative width or height',
            'no extent': 'have a bbox thinner than one pixel',
            'outside': 'have a bbox outside of their image',
            'area': 'have an area that is not positive, though others have one: set area to that '
                    'of the object, or remove the field from all annotations to have it computed',
            'area value': 'have an area that is not a number, or is larger than their image: '
                          'remove the field to have it computed',
            'segmentation': 'have no valid segmentation, which this model needs for its masks: '
                            'give each object a polygon of at least three points, or a run-length '
                            'code of its image\'s size',
        }
        for kind, labels in self.invalid.items():
            self.check.left_out[_REASONS[kind]] += len(labels)
            message = f'{len(labels)} of {total} annotations {texts[kind]}'
            examples = f' ({shorten(labels)})'
            few = kind in self.few
            self.check.findings.add(
                kind, Severity.WARNING if few else Severity.INVALID,
                f'{self.path}: {message}{self._hint(kind)}'
                + ('; training leaves them out, and evaluation counts them' if few else '')
                + examples, labels)

    def _hint(self, kind: str) -> str:
        """Return what explains most ids that are not declared."""
        if kind not in ('image_id', 'category_id'):
            return ''
        declared: Mapping[Any, Any] = self.images if kind == 'image_id' else self.categories
        texts = {str(number) for number in declared}
        values = [_identifier(entry.get(kind)) for entry in self.check.content['annotations']]
        unknown = [value for value in values if value not in declared]
        if unknown and all(str(value) in texts for value in unknown):
            return (f'; {kind} is {type(unknown[0]).__name__} there and '
                    f'{type(next(iter(declared))).__name__} where it is declared: write both '
                    'alike')
        numbers = [value for value in values if isinstance(value, int)]
        if kind == 'category_id' and numbers and len(numbers) == len(values) and all(
                isinstance(number, int) for number in declared):
            shift = min(declared) - min(numbers)
            if shift and max(numbers) + shift <= max(declared):
                return (f'; they count from {min(numbers)}, and categories from {min(declared)}: '
                        'number both alike')
        return ''

    def _label(self, entry: _Object, position: int | None = None) -> str:
        """Return an annotation's id, or its place in the list, and its image."""
        name = _short(entry['id']) if 'id' in entry else 'without an id' if position is None \
            else f'at position {position}'
        number = _identifier(entry.get('image_id'))
        image = self.images[number]['file_name'] if number in self.images \
            else f'image_id {_short(entry.get("image_id"))}'
        return f'annotation {name} ({image})'

    # Ids and counts.

    def _renumber(self, objects: list[_Object]) -> None:
        """Give all a number that pycocotools can use: not text, unique, and no annotation 0."""
        content = self.check.content
        self.categories = self._numbered(self.categories, content['categories'], objects,
                                         'category_id')
        self.images = self._numbered(self.images, content['images'], objects, 'image_id')
        numbers = [_identifier(entry.get('id')) for entry in objects]
        if not all(isinstance(number, int) and 0 < number <= _LARGEST_ID for number in numbers) \
                or len(set(numbers)) < len(numbers):
            for i, entry in enumerate(objects, 1):
                entry['id'] = i
            self.repairs['annotations numbered from 1, as their ids were not numbers above 0, each '
                         'used once'] += 1
            return
        for entry, number in zip(objects, numbers, strict=True):
            self._replace(entry, 'id', number, 'ids written as whole numbers')

    def _numbered(self, declared: dict[Any, Any], entries: list[_Object], objects: list[_Object],
                  key: str) -> dict[Any, Any]:
        """Number categories or images from 1 if their ids can't stay, and return them by id."""
        if all(isinstance(number, int) and abs(number) <= _LARGEST_ID for number in declared):
            return declared
        new = {number: i for i, number in enumerate(declared, 1)}
        for entry in entries:
            entry['id'] = new[entry['id']]
        for entry in objects:
            entry[key] = new[entry[key]]
        self.sizes = self.sizes if key == 'category_id' else {
            new[number]: size for number, size in self.sizes.items()}
        what = {'category_id': 'categories', 'image_id': 'images'}[key]
        self.repairs[f'{what} numbered, as their ids were not numbers of 64 bits'] += 1
        return {new[number]: value for number, value in declared.items()}

    def _count(self, objects: list[_Object]) -> None:
        check = self.check
        check.images = len(self.images)
        check.objects = Counter({name: 0 for name in self.categories.values()
                                 if self._is_used(name)})
        filled = set()
        small = {number for number, size in self.sizes.items() if min(size) < self.min_image_size}
        places: set[tuple[Any, ...]] = set()
        repeated = []
        for entry in objects:
            name = self.categories[entry['category_id']]
            if self.faults[id(entry)]:
                continue  # counted by _report_invalid
            if entry.get('ignore'):
                check.left_out['marked with "ignore"'] += 1
            elif not self._is_used(name):
                check.left_out['of categories that the config does not have'] += 1
            elif entry['image_id'] in small:
                check.left_out[f'in images smaller than {self.min_image_size} pixels'] += 1
            elif entry['iscrowd']:
                check.crowds += 1
            else:
                check.objects[name] += 1
                filled.add(entry['image_id'])
                place = (entry['image_id'], name, *entry['bbox'])
                if place in places:
                    repeated.append(self._label(entry))
                places.add(place)
        check.empty_images = check.images - len(filled)
        if repeated:
            check.findings.add('repeated object', Severity.NOTE,
                               f'{self.path}: {len(repeated)} objects have the class and the bbox '
                               f'of another one: {shorten(repeated)}', repeated)
        if self.needs_objects and not check.objects.total():
            self._error('no objects', 'it has no object to learn from or to evaluate: '
                        + (f'all are left out ({check.describe_left_out()})' if check.left_out else
                           'all are crowd regions (iscrowd=1)' if check.crowds else
                           'annotations is empty'))

    def _is_used(self, name: str) -> bool:
        return self.classes is None or name in self.classes


_REASONS = {
    'image_id': 'of unknown images', 'category_id': 'of unknown categories',
    'iscrowd': 'with an invalid iscrowd', 'ignore': 'with an invalid "ignore"',
    'bbox': 'without a valid bbox',
    'negative': 'of negative size', 'no extent': 'thinner than a pixel',
    'outside': 'outside of their image', 'area': 'with an area that is not positive',
    'area value': 'with an impossible area',
    'segmentation': 'without a mask',
}


def _identifier(value: Any) -> int | str | None:
    """Return an id: a whole number or a text; None if the value is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and value != '' else None


def _is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number that a float can hold."""
    try:
        return (isinstance(value, int | float) and not isinstance(value, bool)
                and math.isfinite(value))
    except OverflowError:
        return False


def _size(image: _Object) -> tuple[int, int] | None:
    """Return width and height if both are whole numbers above 0."""
    values = [image.get('width'), image.get('height')]
    numbers = [int(value) for value in values
               if _is_number(value) and value == int(value) and 1 <= value <= _LARGEST]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _flag(value: Any) -> int | None:
    """Return a flag such as iscrowd as 0 or 1; None if it is something else."""
    if value is None:
        return 0
    if isinstance(value, str):
        return {'0': 0, '1': 1}.get(value)
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _is_plain_text(path: Path) -> bool:
    """Return whether a file begins as UTF-8 without a byte order mark, as MMDetection reads it."""
    try:
        with path.open('rb') as file:
            start = file.read(4)
    except (OSError, ValueError):  # the content came from elsewhere
        return True
    return not start.startswith(codecs.BOM_UTF8) and not start.startswith(
        (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b'\0' not in start


def _is_polygon(value: Any) -> bool:
    return (isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
            and all(_is_number(number) and abs(number) <= _LARGEST for number in value))


def _polygons(entry: _Object) -> list[list[float]]:
    value = entry.get('segmentation')
    return value if isinstance(value, list) else []


def _runs(mask: Any) -> list[int]:
    """Return the lengths of a run-length code, of zeros and ones in turn; empty if it is invalid.

    It is decoded here, because pycocotools does not check the text that it decodes.
    """
    code = mask.get('counts') if isinstance(mask, dict) else None
    if isinstance(code, list):
        return code if all(type(count) is int and count >= 0 for count in code) else []
    if not isinstance(code, str) or not code:
        return []
    # COCO's text: five bits a character from '0' on, the sixth for "goes on"; from the fourth
    # length on, each is the difference to the one before the last.
    runs: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - ord('0')
        if not 0 <= bits < 64 or shift > 60:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return []
        runs.append(value)
        value = shift = 0
    return [] if shift else runs


def _has_mask(entry: _Object, size: tuple[int, int] | None) -> bool:
    """Return whether an object has a mask for an image of a width and height, if they are known."""
    mask = entry.get('segmentation')
    if not isinstance(mask, dict):
        return bool(_polygons(entry))
    runs = _runs(mask)
    return bool(runs) and (size is None or mask.get('size') == [size[1], size[0]]
                           and sum(runs) == size[0] * size[1])


def _box_of(polygons: list[list[float]]) -> list[float]:
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _area(entry: _Object) -> float:
    """Return the area of an object's mask, polygons by the shoelace formula, or that of its box."""
    total = float(sum(_runs(entry.get('segmentation'))[1::2]))
    for polygon in _polygons(entry):
        xs, ys = polygon[::2], polygon[1::2]
        total += abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
    return total or float(entry['bbox'][2] * entry['bbox'][3])


def _by(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit - 3] + '...'
