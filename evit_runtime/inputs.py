"""Pictures, folders, patterns, videos, addresses and webcams that a command is given."""

import glob
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from .errors import UserError

__all__ = ['PICTURE_SUFFIXES', 'VIDEO_SUFFIXES', 'Source', 'find_sources', 'is_address',
           'local_file', 'read_content']

PICTURE_SUFFIXES = frozenset((
    '.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png',
    '.pnm', '.ppm', '.tif', '.tiff', '.webp'))
VIDEO_SUFFIXES = frozenset((
    '.3gp', '.avi', '.flv', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts', '.ts', '.webm',
    '.wmv'))

_SECONDS = 30  # without a byte from a server
_LARGEST_DOWNLOAD = 2 ** 30  # bytes
_CHUNK = 2 ** 20


@dataclass(frozen=True)
class Source:
    """A picture, a video or a webcam.

    Attributes:
        kind: ``'picture'``, ``'video'`` or ``'webcam'``.
        location: Its path, address or number.
        name: What outputs call it: its path below the folder of all sources, with forward slashes.
        stem: The same without an ending, and different from that of every other source.
    """

    kind: str
    location: str
    name: str
    stem: str = ''


def find_sources(inputs: Sequence[str], *, exclude: Path | None = None) -> list[Source]:
    """Return the pictures, videos and webcams that inputs stand for, each once.

    Args:
        inputs: Files, folders, which are searched with their subfolders, patterns such as
            ``'photos/*.jpg'``, addresses that begin with http:// or https://, and numbers of
            webcams.
        exclude: A folder that is not searched: that of the outputs.

    Returns:
        list: The sources in the order of the inputs, those of a folder by name.

    Raises:
        UserError: If there is no such file, or nothing was found.
    """
    files: dict[str, tuple[str, Path]] = {}  # by absolute path: kind, and where its name begins
    others: dict[str, Source] = {}
    order: list[str] = []
    for text in inputs:
        if is_address(text):
            name = _name_in(text)
            others[text] = Source(_kind(name), text, name or 'picture')
            order.append(text)
            continue
        path = Path(text).expanduser()
        if text.isdecimal() and not os.path.lexists(path):
            others[text] = Source('webcam', text, f'webcam_{text}')
            order.append(text)
            continue
        for file, anchor in _expand(text, path, exclude):
            absolute = os.path.abspath(file)
            files.setdefault(absolute, (_kind(file.name), anchor))
            order.append(absolute)
    anchors = {os.path.abspath(anchor) for _, anchor in files.values()}
    # Below one folder, so that equal names in different folders stay apart.
    top = os.path.commonpath(anchors) if anchors else ''
    for absolute, (kind, _) in files.items():
        others[absolute] = Source(kind, absolute,
                                  Path(os.path.relpath(absolute, top)).as_posix())
    if not order:
        raise UserError(f'no pictures or videos in {" ".join(map(str, inputs))}: files of these '
                        f'types are looked for: {" ".join(sorted(PICTURE_SUFFIXES))} '
                        f'{" ".join(sorted(VIDEO_SUFFIXES))}')
    return _with_stems([others[key] for key in dict.fromkeys(order)])


def is_address(text: str) -> bool:
    """Return whether a text is an address on the web."""
    return text.lower().startswith(('http://', 'https://'))


def read_content(source: Source) -> bytes:
    """Return the content of a picture's file.

    Raises:
        UserError: If it can't be read or fetched.
    """
    if is_address(source.location):
        return b''.join(_download(source.location))
    try:
        return Path(source.location).read_bytes()
    except OSError as error:
        raise UserError(f'can\'t read {source.location}: {error.strerror or error}') from error


@contextmanager
def local_file(source: Source) -> Iterator[str]:
    """Yield the path of a video's file, which is fetched if it is on the web.

    Raises:
        UserError: If it can't be fetched.
    """
    if not is_address(source.location):
        yield source.location
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'video' + Path(source.name).suffix)
        try:
            with path.open('wb') as file:
                for chunk in _download(source.location):
                    file.write(chunk)
        except OSError as error:
            raise UserError(f'can\'t store {source.location} in {folder}: '
                            f'{error.strerror or error}') from error
        yield str(path)


def _name_in(address: str) -> str:
    """Return the file name in an address.

    Raises:
        UserError: If it is not an address.
    """
    try:
        path = urllib.parse.urlsplit(address).path
    except ValueError as error:
        raise UserError(f'can\'t fetch {address}: {error}') from error
    return PurePosixPath(urllib.parse.unquote(path).replace('\0', '')).name


def _expand(text: str, path: Path, exclude: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the files that an input stands for, and the folder that their names begin at.

    Raises:
        UserError: If there are none, unless the input is a folder.
    """
    if path.is_dir():
        yield from ((file, path) for file in _walk(path, exclude))
    elif path.exists():
        yield path, path.parent
    elif glob.has_magic(text):
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise UserError(f'nothing matches the pattern {text}')
        for match in matches:
            if match.is_dir():
                if '**' not in text:  # it names what is in the folder, too
                    yield from ((file, match.parent) for file in _walk(match, exclude))
            elif _is_media(match):
                yield match, match.parent
    else:
        raise UserError(f'no such file or folder: {text}')


def _walk(folder: Path, exclude: Path | None) -> Iterator[Path]:
    """Yield the pictures and videos below a folder by name, without hidden ones."""
    hidden = exclude.resolve() if exclude else None
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.')
                            and Path(place, name).resolve() != hidden)
        yield from (Path(place, name) for name in sorted(names)
                    if not name.startswith('.') and _is_media(Path(name)))


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES


def _kind(name: str) -> str:
    return 'video' if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES else 'picture'


def _with_stems(sources: list[Source]) -> list[Source]:
    """Give each source a stem of its own, so that no output replaces another."""
    counts: dict[str, int] = {}
    for source in sources:
        stem = _stem(source.name)
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    taken: set[str] = set()
    named = []
    for source in sources:
        stem = _stem(source.name)
        if counts[stem.casefold()] > 1:
            stem = source.name  # a.jpg and a.png
        number = 2
        unique = stem
        while unique.casefold() in taken:
            unique, number = f'{stem}_{number}', number + 1
        taken.add(unique.casefold())
        named.append(replace(source, stem=unique))
    return named


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(''))


def _download(address: str) -> Iterator[bytes]:
    """Yield what an address holds.

    Raises:
        UserError: If it can't be fetched, or is too large.
    """
    size = 0
    try:
        request = urllib.request.Request(address, headers={'User-Agent': 'evit-mm'})
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > _LARGEST_DOWNLOAD:
                    raise UserError(f'{address} has more than {_LARGEST_DOWNLOAD >> 20} MB')
                yield chunk
    except urllib.error.HTTPError as error:
        raise UserError(f'can\'t fetch {address}: the server answers {error.code} {error.reason}'
                        ) from error
    except (OSError, ValueError) as error:  # no network, a bad address, a connection that ended
        reason = getattr(error, 'reason', None) or error
        raise UserError(f'can\'t fetch {address}: {reason}') from error
