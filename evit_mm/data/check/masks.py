"""Label maps: their numbers against the classes, their files and their sizes.

A pixel's number says its class; 255 means that the pixel is ignored. Much that is wrong with label
maps leaves a run without an error: masks of 0 and 255 have no object, classes that are renumbered
have no pixels, and the compression of JPEG changes numbers.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from tqdm import tqdm

from ...errors import UserError
from ..image_limits import too_many_pixels
from .findings import Findings, Severity, shorten
from .image_headers import ImageHeader, read_header

__all__ = ['IGNORED', 'LabelCounts', 'MasksCheck', 'check_image_content', 'check_labels',
           'check_masks', 'check_orientations', 'labels_of_values', 'number_ranges',
           'single_channel', 'turned', 'turned_by_own_orientation']

IGNORED = 255  # MMSegmentation's default
_INVALID = 254  # label of the numbers that no class has
_MOSTLY_IGNORED = 0.5
_ENOUGH = 20  # label maps, for judging a dataset by a sample
_CLASSES_SHOWN = 10
_VALUES_SHOWN = 5
BLACK_AND_WHITE_FIX = (
    'to train on both as classes, set mask_values=(0, 255) in a dataset of '
    'type=\'LabelMapDataset\', pass --mask-values 0,255 with --masks, or store 1 in place of 255 '
    'in the files')


@dataclass
class LabelCounts:
    """The pixels of each label in a number of label maps.

    Attributes:
        classes: Names of the labels from 0 on.
        pixels: Pixels of each label, (256,).
        maps: Label maps in which each label occurs, (256,).
        checked: Label maps counted.
        total: Label maps of the dataset.
    """

    classes: Sequence[str]
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    maps: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    checked: int = 0
    total: int = 0

    def add(self, labels: npt.NDArray[np.uint8]) -> None:
        """Count the pixels of a label map (H, W)."""
        self.add_histogram(np.bincount(labels.ravel(), minlength=256))

    def add_histogram(self, pixels: npt.NDArray[np.int64]) -> None:
        """Count a label map by its pixels of each label, (256,)."""
        self.pixels += pixels
        self.maps += pixels > 0
        self.checked += 1

    @property
    def present(self) -> list[int]:
        """Labels of the classes that occur."""
        return [int(label) for label in np.flatnonzero(self.pixels[:len(self.classes)])]

    @property
    def absent(self) -> list[str]:
        """Names of the classes that do not occur."""
        return [name for name, pixels in zip(self.classes, self.pixels, strict=False)
                if not pixels]

    @property
    def ignored(self) -> float:
        """Share of the pixels that are ignored."""
        return float(self.pixels[IGNORED] / max(1, self.pixels.sum()))

    def describe(self) -> str:
        """Return a line with the share of each class, the most frequent ones first."""
        used = self.pixels[:len(self.classes)]
        order = [label for label in np.argsort(-used, kind='stable') if used[label]]
        shown = ', '.join(
            f'{self.classes[label]} {used[label] / used.sum():.1%} ({self.maps[label]})'
            for label in order[:_CLASSES_SHOWN])
        more = len(order) - _CLASSES_SHOWN
        return ('classes by their share of the pixels, with the number of label maps that they '
                f'are in: {shown or "none"}'
                + (f' and {more} more' if more > 0 else '')
                + f'; {self.ignored:.1%} of the pixels are ignored')


@dataclass
class MasksCheck:
    """Checked label maps.

    Attributes:
        counts: Pixels of the classes, after numbers have become labels.
        values: Pixels of each number in the files, (256,).
        findings: What was found.
    """

    counts: LabelCounts
    values: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    findings: Findings = field(default_factory=Findings)


def check_masks(masks: Sequence[str], *, classes: Sequence[str] | None = None,
                zero_is_unlabelled: bool = False, values: Sequence[int] | None = None,
                images: Mapping[str, str] | None = None, title: str = 'label maps',
                progress: bool = False) -> MasksCheck:
    """Read label maps in parallel, and check them.

    Args:
        masks: Their files.
        classes: Names of the classes in the order of their numbers; None takes all numbers that
            occur, up to 254.
        zero_is_unlabelled: Whether 0 is ignored and 1 is the first class.
        values: The number of each class, where it is another than 0, 1, 2 and so on.
        images: The image of each label map, to compare their sizes.
        title: What the files are called in messages.
        progress: Whether to show a progress bar.
    """
    histograms, faults, headers, sizes = {}, {}, {}, {}

    def read(path: str) -> None:
        image = (images or {}).get(path)
        if image is not None:
            headers[path] = read_header(image)
        try:
            numbers = _read_mask(path)
        except UserError as error:
            faults[path] = str(error)
            return
        histograms[path] = np.bincount(numbers.ravel(), minlength=256)
        sizes[path] = numbers.shape[1::-1]

    # Pillow decodes outside of Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(tqdm(pool.map(read, masks), total=len(masks), desc=title, unit='map', leave=False,
                  disable=not progress))
    raw = sum(histograms.values(), np.zeros(256, np.int64))
    if classes is None:
        highest = max(np.flatnonzero(raw[:IGNORED]), default=0)
        classes = [f'class_{number}' for number in range(zero_is_unlabelled, highest + 1)]
    check = MasksCheck(LabelCounts(classes, total=len(masks)), raw)
    findings = check.findings
    if faults:
        findings.add('unusable', Severity.ERROR, next(iter(faults.values())), list(faults))
    _compare_sizes(findings, {path: sizes[path] for path in masks if path in sizes}, headers,
                   images or {})
    table = labels_of_values(values if values is not None else
                             range(zero_is_unlabelled, zero_is_unlabelled + len(classes)),
                             ignored=[0] if zero_is_unlabelled else [])
    wrong = [path for path, pixels in histograms.items() if pixels[table == _INVALID].any()]
    if wrong:
        numbers = [int(n) for n in np.flatnonzero(histograms[wrong[0]]) if table[n] == _INVALID]
        findings.add('values', Severity.ERROR, values_sentence(
            wrong[0], numbers, np.flatnonzero(table != _INVALID).tolist(), len(classes),
            zero_is_unlabelled), wrong)
    for pixels in histograms.values():
        check.counts.add_histogram(np.bincount(table, weights=pixels, minlength=256
                                               ).astype(np.int64))
    findings += check_labels(check.counts, title, zero_is_unlabelled=zero_is_unlabelled)
    return check


def check_labels(counts: LabelCounts, title: str, *, zero_is_unlabelled: bool = False,
                 renumbered_by: str | None = None, learns: bool = True) -> Findings:
    """Judge the labels of a dataset by their counts.

    Args:
        counts: The labels as a model gets them.
        title: The dataset in messages, such as 'the train dataset'.
        zero_is_unlabelled: Whether 0 in the files is ignored.
        renumbered_by: Type of the dataset, if it renumbers the files by the names of classes.
        learns: Whether a model is trained on them.
    """
    findings = Findings()
    if not counts.checked:
        return findings
    maps = f'the {counts.checked} label maps' + (
        '' if counts.checked == counts.total else f', of {counts.total}, that were checked') \
        + f' of {title}'
    sampled_enough = counts.checked >= min(counts.total, _ENOUGH)
    severity = Severity.ERROR if sampled_enough else Severity.WARNING
    if not counts.present:
        if renumbered_by:
            fix = (f'{renumbered_by} numbers label maps by its own classes; for files with classes '
                   'numbered in the order of metainfo.classes, set type=\'LabelMapDataset\' in the '
                   'dataset')
        elif zero_is_unlabelled:
            fix = ('0 counts as unlabelled (reduce_zero_label=True), and 255 is ignored: set '
                   'reduce_zero_label=False if 0 is a class; ' + BLACK_AND_WHITE_FIX)
        else:
            fix = '255 is not a class: store the number of a class instead'
        findings.add('all ignored', severity, f'every pixel in {maps} is ignored: {fix}')
    elif len(counts.present) == 1 and counts.pixels[IGNORED]:
        label = counts.present[0]
        name = counts.classes[label]
        if renumbered_by:
            fix = (f'{renumbered_by} numbers label maps by its own classes, and ignores all others;'
                   ' for files with classes numbered in the order of metainfo.classes, set '
                   'type=\'LabelMapDataset\' in the dataset')
        elif zero_is_unlabelled:
            fix = ('0 counts as unlabelled (reduce_zero_label=True): set reduce_zero_label=False '
                   'and name the background as the first class')
        elif label == 0:
            fix = f'they hold only 0 and 255, which means ignored; {BLACK_AND_WHITE_FIX}'
        else:
            fix = 'store the number of a second class where 255 means background'
        findings.add('one class', severity if learns or label == 0 else Severity.WARNING,
                     f'all pixels in {maps} are {name!r} or ignored, so that there is nothing to '
                     f'tell apart: {fix}')
    elif len(counts.present) == 1:
        findings.add('one class', Severity.WARNING, f'all pixels in {maps} are of the class '
                     f'{counts.classes[counts.present[0]]!r}: there is nothing to tell apart')
    elif counts.absent:
        # A sample says little about rare classes.
        is_telling = counts.checked == counts.total or len(counts.classes) <= _ENOUGH
        findings.add('absent', Severity.WARNING if is_telling else Severity.NOTE,
                     f'no pixel of {len(counts.absent)} of the {len(counts.classes)} classes in '
                     f'{maps}: {shorten(counts.absent, _CLASSES_SHOWN)}', counts.absent)
    findings.add('labels', Severity.NOTE, f'{title}: {counts.describe()}')
    if counts.present and counts.ignored >= _MOSTLY_IGNORED:
        findings.add('ignored', Severity.WARNING,
                     f'{counts.ignored:.0%} of the pixels in {maps} are ignored')
    return findings


def check_orientations(headers: Mapping[str, ImageHeader],
                       sizes: Mapping[str, tuple[int, int]]) -> Findings:
    """Judge whether label maps fit images that EXIF turns.

    A label map that has the size of the stored pixels alone is turned with its image. Where sizes
    don't tell, label maps are taken as drawn on the image as a viewer shows it.

    Args:
        headers: Headers of the images by a name.
        sizes: Width and height of their label maps by the same name.
    """
    findings = Findings()
    as_stored, unclear = [], []
    for name, header in headers.items():
        if header.orientation != 1 and not header.error and name in sizes:
            if sizes[name] == header.displayed_size:
                if header.displayed_size == header.size:
                    unclear.append(name)
            elif sizes[name] == header.size:
                as_stored.append(name)
    if as_stored:
        findings.add('drawn as stored', Severity.NOTE,
                     f'{len(as_stored)} label maps were drawn on the pixels of their images as '
                     'stored, and are turned as EXIF turns these: ' + shorten(as_stored), as_stored)
    if unclear and as_stored:
        findings.add('orientation', Severity.ERROR,
                     f'{len(unclear)} images, such as {unclear[0]}, are turned by EXIF without a '
                     'change of size, and other label maps were drawn on the pixels as stored, '
                     f'such as that of {as_stored[0]}, so that the sides of these can\'t be told: '
                     'turn the pixels of all images and remove their orientation (such as by '
                     'Pillow\'s ImageOps.exif_transpose), and turn the label maps with them',
                     unclear)
    elif unclear:
        findings.add('orientation', Severity.WARNING,
                     f'{len(unclear)} images, such as {unclear[0]}, are turned by EXIF without a '
                     'change of size: their label maps are taken as drawn on the image as a viewer '
                     'shows it; if they were drawn on the pixels as stored, turn them', unclear)
    return findings


def values_sentence(path: str, numbers: Sequence[Any], valid: Sequence[int], num_classes: int,
                    zero_is_unlabelled: bool) -> str:
    """Return the sentence for a label map with numbers of no class.

    Args:
        path: The file.
        numbers: The wrong numbers in it.
        valid: All numbers that it may have.
        num_classes: Number of classes.
        zero_is_unlabelled: Whether 0 is ignored and 1 is the first class.
    """
    fix = 'correct it, or add the classes of these values to the config'
    if list(numbers) == [num_classes] and not zero_is_unlabelled:
        fix += ' (if classes count from 1, set reduce_zero_label=True in the dataset)'
    shown = ', '.join(f'{number:.10g}' for number in numbers[:_VALUES_SHOWN])
    return (f'the label map {path} has values of no class: {shown}'
            f'{" ..." if len(numbers) > _VALUES_SHOWN else ""}; valid are '
            f'{number_ranges(valid)}: {fix}')


def labels_of_values(values: Iterable[int], ignored: Iterable[int] = ()
                     ) -> npt.NDArray[np.uint8]:
    """Return the label (256,) of each number in a file.

    Args:
        values: The number of each class.
        ignored: Numbers that are ignored, besides 255.
    """
    table = np.full(256, _INVALID, np.uint8)
    table[[IGNORED, *ignored]] = IGNORED
    for label, value in enumerate(values):
        table[value] = label
    return table


def check_image_content(content: bytes, path: str) -> None:
    """Check that a label map's file is of a kind that keeps its numbers.

    Raises:
        UserError: If it is a JPEG file, or has too many pixels to be decoded.
    """
    large = too_many_pixels(content)
    if large:
        raise UserError(f'the label map {path} can\'t be decoded ({large})')
    if content.startswith(b'\xff\xd8\xff'):
        raise UserError(f'the label map {path} is a JPEG file, whose compression changes the '
                        'numbers of pixels: export it again as PNG from where it was drawn')


def single_channel(values: npt.NDArray[Any], path: str) -> npt.NDArray[Any]:
    """Return the numbers of a label map as (H, W), without an axis of channels.

    Raises:
        UserError: If there are several channels.
    """
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[..., 0] if values.shape[2] == 1 else values[0]
    if values.ndim != 2:
        raise UserError(f'the label map {path} has {values.shape[-1]} channels, but must have '
                        'one: store the class of each pixel as a number in a grey or palette '
                        'image')
    return values


def turned(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn and mirror an array (H, W, ...) as EXIF's orientation says."""
    values = {3: np.rot90(values, 2), 4: values[::-1], 6: np.rot90(values, -1),
              8: np.rot90(values)}.get(orientation, values)
    if orientation == 2:
        return values[:, ::-1]
    if orientation == 5:
        return values.swapaxes(0, 1)
    return np.rot90(values, 2).swapaxes(0, 1) if orientation == 7 else values


def turned_by_own_orientation(values: npt.NDArray[Any], content: bytes) -> npt.NDArray[Any]:
    """Turn the pixels of a label map as its own file says; few files do.

    Args:
        values: The pixels as stored.
        content: The file.
    """
    # Pillow turns TIFF files itself; other formats of label maps have no orientation.
    mark = {b'\x89PNG': b'eXIf', b'RIFF': b'EXIF'}.get(content[:4])
    if mark is None or mark not in content:
        return values
    with Image.open(BytesIO(content)) as image:
        return turned(values, image.getexif().get(ExifTags.Base.Orientation, 1))


def number_ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers as ranges: '0 to 150 and 255'."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ' and '.join(str(a) if a == b else f'{a} to {b}'
                        for a, b in zip(starts, ends, strict=True))


def _read_mask(path: str) -> npt.NDArray[np.uint8]:
    """Read a label map as (H, W).

    Raises:
        UserError: If it can't be read, or does not hold one number of 8 bits per pixel.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'can\'t read the label map {path}: {error.strerror or error}') from error
    check_image_content(content, path)
    try:
        with Image.open(BytesIO(content)) as image:
            values = np.asarray(image)
    except Exception as error:  # each decoder has errors of its own
        # Pillow's message ends with the address of a buffer in memory.
        reason = 'it is empty' if not content else \
            ' '.join(str(error).partition(' <')[0].split()) or type(error).__name__
        raise UserError(f'the label map {path} is not an image, or is truncated ({reason}): '
                        'replace it, or remove it and its image') from error
    values = turned_by_own_orientation(single_channel(values, path), content)
    beyond = np.unique(values[(values < 0) | (values > 255)]) if values.dtype != np.uint8 else ()
    if len(beyond):
        raise UserError(f'the label map {path} has values that 8 bits can\'t hold: '
                        f'{shorten([f"{value:.10g}" for value in beyond], _VALUES_SHOWN)}; number '
                        'the classes from 0 to 254')
    return values.astype(np.uint8)


def _compare_sizes(findings: Findings, sizes: Mapping[str, tuple[int, int]],
                   headers: Mapping[str, ImageHeader], images: Mapping[str, str]) -> None:
    """Add what is wrong with the sizes of label maps, or with their images."""
    broken = [path for path, header in headers.items() if header.error]
    if broken:
        findings.add('image', Severity.ERROR, f'the image {images[broken[0]]} can\'t be read: '
                     f'{headers[broken[0]].error}; replace it, or remove it and its label map',
                     [images[path] for path in broken])
    other = [path for path, size in sizes.items() if path in headers and path not in broken
             and size not in (headers[path].displayed_size, headers[path].size)]
    if other:
        width, height = sizes[other[0]]
        size = headers[other[0]].displayed_size
        findings.add('size', Severity.ERROR,
                     f'the label map {other[0]} is {height}x{width} (height x width), but its '
                     f'image {images[other[0]]} is {size[1]}x{size[0]}: replace one of the two, or '
                     'remove both', other)
    findings += check_orientations(headers, sizes)
