"""The full check of a dataset: all annotation files, all images, and the splits together."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import write_json
from .coco import CocoCheck, check_coco, read_coco
from .findings import Finding, Findings, Severity
from .image_headers import ImageHeader, read_headers
from .images import check_leakage, check_modes, check_readable
from .masks import check_masks

__all__ = ['CocoSource', 'DatasetCheck', 'SplitCheck', 'check_dataset', 'check_source']

_TINY = 4  # pixels; less than half of the finest stride of common detectors
_MANY_TINY = 0.1


@dataclass
class CocoSource:
    """An annotation file, and how a dataset reads it.

    Attributes:
        path: The file.
        images: Folder of its images; None leaves them unread.
        classes: The classes that are used; None uses all.
        needs_masks: Whether every object needs a mask.
        needs_objects: Whether it has to have objects.
        min_image_size: Side in pixels below which images are left out.
        scales: Sizes (long side, short side) to which images are resized, if it is known.
    """

    path: Path
    images: str | None
    classes: Sequence[str] | None = None
    needs_masks: bool = False
    needs_objects: bool = True
    min_image_size: float = 0
    scales: Sequence[tuple[float, float]] = ()


@dataclass
class SplitCheck:
    """A checked split.

    Attributes:
        name: Such as ``'train'``.
        source: Its annotation file; None for label maps.
        coco: What was found in that file.
        files: Paths of its images by file name.
        headers: Headers of its images by file name.
        findings: All that was found.
        class_images: Number of images with each class.
        boxes: Widths and heights of the objects in pixels.
    """

    name: str
    source: CocoSource | None = None
    coco: CocoCheck | None = None
    files: dict[str, str] = field(default_factory=dict)
    headers: dict[str, ImageHeader] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    class_images: Counter[str] = field(default_factory=Counter)
    boxes: list[tuple[float, float]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and findings as values that JSON can hold."""
        coco = self.coco
        return dict(
            name=self.name, images=len(self.files),
            **({} if coco is None else dict(
                annotation_file=str(coco.path), images_without_objects=coco.empty_images,
                objects={name: dict(count=count, images=self.class_images[name])
                         for name, count in coco.objects.items()},
                crowd_regions=coco.crowds, left_out=dict(coco.left_out),
                needs_repair=coco.is_changed)),
            formats=dict(Counter(header.format for header in self.headers.values()
                                 if not header.error)),
            modes=dict(Counter(header.mode for header in self.headers.values()
                               if not header.error)),
            findings=[finding.as_dict() for finding in self.findings])


@dataclass
class DatasetCheck:
    """A checked dataset.

    Attributes:
        splits: Its parts.
        findings: What concerns several of them.
        skip_invalid: Whether invalid objects may be left out.
    """

    splits: list[SplitCheck]
    findings: Findings = field(default_factory=Findings)
    skip_invalid: bool = False

    def all_findings(self) -> list[Finding]:
        """Return the findings of all splits, and those about several."""
        return [finding for split in self.splits for finding in split.findings] + self.findings

    @property
    def stopping(self) -> list[Finding]:
        """The findings after which a run does not start."""
        severities = [Severity.ERROR] if self.skip_invalid else [Severity.ERROR, Severity.INVALID]
        return [finding for finding in self.all_findings() if finding.severity in severities]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can hold."""
        return dict(usable=not self.stopping, splits=[split.as_dict() for split in self.splits],
                    findings=[finding.as_dict() for finding in self.findings])

    def write_repaired(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write repaired copies of the annotation files that need it.

        Args:
            folder: Gets the copies under the names of the files; two of one name are told apart by
                their splits.

        Returns:
            list: The copies. Files that still stop a run are left out.

        Raises:
            UserError: If one can't be written.
        """
        folder, copies = Path(folder), []
        for split in self.splits:
            coco = split.coco
            if coco is None or not coco.is_changed or coco.findings.of(Severity.ERROR) \
                    or not self.skip_invalid and coco.findings.of(Severity.INVALID):
                continue
            path = folder / coco.path.name
            if path in copies:
                path = folder / f'{split.name}-{coco.path.name}'
            if os.path.realpath(path) == os.path.realpath(coco.path):
                raise UserError(f'can\'t write {path}: it is the file that was checked; --repair '
                                'needs another folder')
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f'can\'t write {folder}: {error.strerror or error}') from error
            write_json(path, coco.content)
            copies.append(path)
        return copies


def check_dataset(sources: Mapping[str, CocoSource] | None = None, *,
                  masks: str | os.PathLike[str] | None = None,
                  images: str | os.PathLike[str] | None = None,
                  classes: Sequence[str] | None = None, zero_is_unlabelled: bool = False,
                  decode: bool = False, skip_invalid: bool = False, progress: bool = False
                  ) -> DatasetCheck:
    """Check a dataset as thoroughly as possible.

    Args:
        sources: Annotation files by the name of their split.
        masks: Folder of label maps, in place of annotation files.
        images: Folder of the images of these label maps.
        classes: Names of the classes of label maps, in the order of their numbers.
        zero_is_unlabelled: Whether 0 in label maps means unlabelled.
        decode: Decode every image, instead of reading headers only.
        skip_invalid: Whether invalid objects may be left out.
        progress: Whether to show progress bars.

    Returns:
        DatasetCheck: All counts and findings.

    Raises:
        UserError: If an annotation file or a folder can't be read.
    """
    splits = [_check_split(name, source, decode=decode, progress=progress)
              for name, source in (sources or {}).items()]
    if masks is not None:
        splits.append(_check_masks(os.fspath(masks), images, classes, zero_is_unlabelled, progress))
    check = DatasetCheck(splits, skip_invalid=skip_invalid)
    if len(splits) > 1:
        check.findings += check_leakage({split.name: list(split.files.values())
                                         for split in splits}, progress=progress)
    return check


def check_source(source: CocoSource, *, seconds: float | None = None, progress: bool = False
                 ) -> CocoCheck:
    """Check an annotation file against its images.

    Args:
        source: The file.
        seconds: Time for reading image headers; None reads all.
        progress: Whether to show a progress bar.

    Raises:
        UserError: If the file is not a COCO annotation file.
    """
    return _check_source(source, seconds, progress)[0]


def _check_source(source: CocoSource, seconds: float | None, progress: bool
                  ) -> tuple[CocoCheck, dict[str, str], dict[str, ImageHeader]]:
    """Return the check of an annotation file, and paths and headers of its images by name."""
    content = read_coco(source.path, needs_objects=source.needs_objects)
    listed = [image for image in content['images'] if isinstance(image.get('file_name'), str)]
    paths = {} if source.images is None else {
        image['file_name']: os.path.join(source.images, image['file_name']) for image in listed}
    # Where the file gives no size, it has to be read.
    unknown = [paths[image['file_name']] for image in listed
               if paths and image.get('width') is image.get('height') is None]
    headers = read_headers(unknown, progress=progress, title=source.path.name)
    headers |= read_headers((path for path in paths.values() if path not in headers),
                            seconds=seconds, progress=progress, title=source.path.name)
    by_name = {name: headers[path] for name, path in paths.items() if path in headers}
    check = check_coco(source.path, content=content, classes=source.classes, headers=by_name,
                       needs_masks=source.needs_masks, needs_objects=source.needs_objects,
                       min_image_size=source.min_image_size)
    return check, paths, by_name


def _check_split(name: str, source: CocoSource, *, decode: bool, progress: bool) -> SplitCheck:
    coco, paths, headers = _check_source(source, None, progress)
    split = SplitCheck(name, source, coco, paths, headers)
    split.findings += coco.findings
    split.findings += check_modes(headers, name)
    empty = [label for label, count in coco.objects.items() if not count]
    if empty and coco.objects.total():
        split.findings.add('class without objects', Severity.WARNING,
                           f'{name}: no object of {len(empty)} of the {len(coco.objects)} classes: '
                           f'{", ".join(empty[:10])}{" ..." if len(empty) > 10 else ""}', empty)
    if decode:
        sizes = {image['file_name']: (image['width'], image['height'])
                 for image in coco.content['images'] if image.get('file_name') in paths
                 and isinstance(image.get('width'), int) and isinstance(image.get('height'), int)}
        readable = {file: path for file, path in paths.items()
                    if not headers[file].error}  # others were reported
        split.findings += check_readable(readable, sizes, name, progress=progress)
    if coco.objects.total():
        _measure(split)
    return split


def _measure(split: SplitCheck) -> None:
    """Count the images of each class, and the sizes of boxes."""
    assert split.coco is not None and split.source is not None
    content = split.coco.content
    names = {category['id']: category['name'] for category in content['categories']}
    images = {image['id']: image for image in content['images']}
    seen: set[tuple[str, int]] = set()
    tiny = []
    for entry in content['annotations']:
        name = names[entry['category_id']]
        if name not in split.coco.objects or entry['iscrowd']:
            continue
        seen.add((name, entry['image_id']))
        width, height = entry['bbox'][2:]
        split.boxes.append((width, height))
        image = images[entry['image_id']]
        if split.source.scales and min(width, height) * _factor(
                image['width'], image['height'], split.source.scales) < _TINY:
            tiny.append(f'annotation {entry["id"]!r} ({image["file_name"]})')
    split.class_images = Counter(name for name, _ in seen)
    if tiny:
        smallest = min(split.source.scales)
        split.findings.add(
            'tiny', Severity.WARNING if len(tiny) > _MANY_TINY * len(split.boxes)
            else Severity.NOTE,
            f'{split.name}: {len(tiny)} of {len(split.boxes)} boxes are narrower than {_TINY} '
            f'pixels after the resize to {smallest[0]:g}x{smallest[1]:g}: enlarge its scale, or '
            'cut the images into tiles', tiny)


def _factor(width: float, height: float, scales: Sequence[tuple[float, float]]) -> float:
    """Return the smallest factor by which an image is resized, with its proportions kept."""
    return min(min(max(scale) / max(width, height), min(scale) / min(width, height))
               for scale in scales)


def _check_masks(masks: str, images: str | os.PathLike[str] | None,
                 classes: Sequence[str] | None, zero_is_unlabelled: bool, progress: bool
                 ) -> SplitCheck:
    from ..label_map_files import LABEL_MAP_SUFFIXES, pair_files, visible_files

    for folder in (masks, images):
        if folder is not None and not os.path.isdir(folder):
            raise UserError(f'no such folder: {folder}')
    if images is None:
        paths = [os.path.join(masks, name)
                 for name in sorted(visible_files(masks, LABEL_MAP_SUFFIXES))]
        pairs: dict[str, str] = {}
    else:
        pairs = {mask: image for image, mask in pair_files(os.fspath(images), masks)
                 if mask is not None}
        paths = list(pairs)
    if not paths:
        raise UserError(f'no label maps in {masks}: they are files that end in '
                        f'{", ".join(LABEL_MAP_SUFFIXES)}')
    split = SplitCheck('label maps', files={image: image for image in pairs.values()})
    checked = check_masks(paths, classes=classes, zero_is_unlabelled=zero_is_unlabelled,
                          images=pairs, title=masks, progress=progress)
    split.findings += checked.findings
    split.headers = read_headers(pairs.values(), progress=progress, title='images')
    unread = [f'{path} ({header.error})' for path, header in split.headers.items() if header.error]
    if unread:
        split.findings.add('image file', Severity.ERROR, f'{len(unread)} of {len(pairs)} images '
                           f'can\'t be read: {unread[0]}; replace them, or remove them and their '
                           'label maps', unread)
    split.findings += check_modes(split.headers, 'images')
    return split
