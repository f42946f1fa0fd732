"""Image files of several splits: formats, readability, and images that occur in more than one."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from ...errors import UserError
from .findings import Findings, Severity, shorten
from .image_headers import ImageHeader

__all__ = ['check_leakage', 'check_modes', 'check_readable']

_DEEP_MODES = ('I', 'F', 'I;16', 'I;16B', 'I;16L')
# What exporters and copying add to the name of an image.
_ADDITIONS = re.compile(r'\.rf\.[0-9a-zA-Z]{16,}$|[ _-]copy$| \(\d+\)$|[_-]aug(mented)?[_-]?\d*$')
_Result = TypeVar('_Result')


def check_modes(headers: Mapping[str, ImageHeader], title: str) -> Findings:
    """Report the formats and modes of images.

    Args:
        headers: Their headers by file.
        title: The dataset, for messages.
    """
    findings = Findings()
    readable = {file: header for file, header in headers.items() if not header.error}
    modes = Counter(header.mode for header in readable.values())
    deep = [file for file, header in readable.items() if header.mode in _DEEP_MODES]
    if deep:
        findings.add('bit depth', Severity.WARNING,
                     f'{title}: {len(deep)} of {len(readable)} images have more than 8 bits per '
                     f'channel, and are loaded with 8: {shorten(deep)}', deep)
    colors = {mode for mode in modes if mode not in _DEEP_MODES}
    if len(colors) > 1 or deep and colors:
        findings.add('modes', Severity.NOTE, f'{title}: the images are of several modes: '
                     + ', '.join(f'{count} {mode}' for mode, count in modes.most_common()))
    return findings


def check_readable(files: Mapping[str, str], sizes: Mapping[str, tuple[int, int]], title: str, *,
                   progress: bool = False) -> Findings:
    """Decode images as a training does.

    Args:
        files: Their paths by file name.
        sizes: Their annotated widths and heights by file name.
        title: The dataset, for messages.
        progress: Whether to show a progress bar.
    """
    from ..loading import CheckedLoadImage  # imports mmcv

    load = CheckedLoadImage()

    def error(file: str) -> str:
        width, height = sizes.get(file, (None, None))
        try:
            load(dict(img_path=files[file], width=width, height=height))
        except UserError as caught:
            return str(caught)
        return ''

    errors = [text for text in _in_parallel(error, files, f'decode {title}', progress) if text]
    findings = Findings()
    if errors:
        findings.add('decoding', Severity.ERROR,
                     f'{title}: {len(errors)} of {len(files)} images can\'t be used: {errors[0]}',
                     errors)
    return findings


def check_leakage(splits: Mapping[str, Sequence[str]], *, progress: bool = False) -> Findings:
    """Find images that are in more than one split, by their content and by their names.

    Args:
        splits: Paths of the images of each split.
        progress: Whether to show a progress bar.
    """
    findings = Findings()
    names = list(splits)
    digests = _digests(splits, progress)
    for i, one in enumerate(names):
        for other in names[i + 1:]:
            _compare_splits(findings, digests, one, splits[one], other, splits[other])
    return findings


def _compare_splits(findings: Findings, digests: Mapping[str, str], one: str,
                    one_files: Sequence[str], other: str, other_files: Sequence[str]) -> None:
    contents = {digests[path]: path for path in one_files if path in digests}
    same = [f'{contents[digests[path]]} = {path}' for path in other_files
            if digests.get(path) in contents]
    if same:
        findings.add('same image', Severity.WARNING,
                     f'{len(same)} images of {other} are in {one} too, so that a model is judged '
                     f'by what it has learnt: {shorten(same)}', same)
    plain = {_plain_stem(path): path for path in one_files}
    alike = [f'{found} ~ {path}' for path in other_files
             if (found := plain.get(_plain_stem(path))) is not None
             and (_has_addition(path) or _has_addition(found))
             and digests.get(path) not in contents]
    if alike:
        findings.add('similar name', Severity.WARNING,
                     f'{len(alike)} images of {other} have the name of one of {one} but for what '
                     f'an exporter adds, and may be versions of it: {shorten(alike)}', alike)


def _digests(splits: Mapping[str, Sequence[str]], progress: bool) -> dict[str, str]:
    """Return a digest of the files that have the size of a file in another split."""
    owners: dict[int, set[str]] = defaultdict(set)
    sizes: dict[str, int] = {}
    for name, files in splits.items():
        for path in files:
            try:
                sizes[path] = os.path.getsize(path)
            except (OSError, ValueError):
                continue  # reported as unreadable
            owners[sizes[path]].add(name)
    shared = [path for path, size in sizes.items() if len(owners[size]) > 1]

    def digest(path: str) -> str:
        try:
            with open(path, 'rb') as file:
                return hashlib.sha1(file.read()).hexdigest()
        except OSError:
            return ''

    values = _in_parallel(digest, shared, 'compare splits', progress)
    return {path: value for path, value in zip(shared, values, strict=True) if value}


def _plain_stem(path: str) -> str:
    """Return a file's name without its suffix and what exporters add."""
    return _ADDITIONS.sub('', os.path.splitext(os.path.basename(path))[0])


def _has_addition(path: str) -> bool:
    return _plain_stem(path) != os.path.splitext(os.path.basename(path))[0]


def _in_parallel(function: Callable[[str], _Result], values: Iterable[str], title: str,
                 progress: bool) -> list[_Result]:
    values = list(values)
    if not values:
        return []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(function, values), total=len(values), desc=title, unit='image',
                         leave=False, disable=not progress))
