"""The work of `evit-mm predict` and `evit-run predict`: from inputs to a folder of results."""

import csv
import errno
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image as Pillow

from .drawing import write_picture
from .errors import UserError
from .files import write_atomically
from .image_files import decode_image, has_several_frames
from .inputs import Source, find_sources, local_file, read_content
from .model import Image, Model
from .results import Result
from .tiles import TiledModel
from .tracking import Tracker
from .version import __version__

__all__ = ['Summary', 'predict']

_USUAL_FPS = 25.0  # of a video or webcam that does not say
_VIDEO_NEEDS = 2 ** 18  # bytes of free space, as its index is written in the end
_COMPLETE = 0.98  # of the frames that a video announces, which is often an estimate


@dataclass
class Summary:
    """What a prediction has done.

    Attributes:
        out: The folder of the outputs.
        pictures: Pictures that were predicted.
        frames: Frames of videos that were predicted.
        counts: Objects of each class; of label maps, images in which the class occurs.
        failures: A sentence for each input that could not be read.
        interrupted: Whether Ctrl-C ended the work; the outputs have what was done before.
    """

    out: Path
    pictures: int = 0
    frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False

    def __str__(self) -> str:
        images = ' and '.join(f'{count} {name}{"s" if count > 1 else ""}' for count, name in (
            (self.pictures, 'picture'), (self.frames, 'frame')) if count) or 'no picture'
        found = ', '.join(f'{name} {count}' for name, count in self.counts.most_common(10))
        more = f' and {len(self.counts) - 10} more' if len(self.counts) > 10 else ''
        return f'{images}: {found or "nothing found"}{more}; see {self.out}'


def predict(model: Model, inputs: Sequence[str], *, out: str | Path | None = None,
            overwrite: bool = False, score_threshold: float = 0.3,
            classes: Iterable[str | int] | None = None, batch_size: int = 1,
            draw: bool = True, save_crops: bool = False, tiles: int | None = None,
            tile_overlap: float = 0.2, track: bool = False, progress: bool = False) -> Summary:
    """Predict pictures and videos, and write what was found into a folder.

    The folder gets ``predictions.json`` in COCO's format, ``predictions.csv``, annotated pictures
    in ``pictures/`` and videos in ``videos/``, and label maps in ``label_maps/``, under the names
    that the inputs have below their common folder. An input that can't be read is named on stderr
    and left out.

    Args:
        model: Any model.
        inputs: As `find_sources` takes them.
        out: The folder; by default a new one, ``predictions``.
        overwrite: Write into a folder that is not empty.
        score_threshold: Lowest score of the objects.
        classes: Names or numbers of the classes to keep.
        batch_size: Images, or tiles, that the model computes at a time.
        draw: Write annotated pictures and videos.
        save_crops: Write each object as a picture of its own, in ``crops/`` by class.
        tiles: Side of the tiles in pixels in which large images are predicted; None for none.
        tile_overlap: Part of a tile that its neighbour has, too.
        track: Follow objects through the frames of videos.
        progress: Show a progress bar.

    Raises:
        UserError: If an argument or input is wrong, or the folder can't be written.
    """
    if model.task == 'semantic segmentation' and (save_crops or track):
        flag = '--save-crops' if save_crops else '--track'
        raise UserError(f'{flag} needs a detector: this model predicts label maps')
    if tiles is not None:
        model = TiledModel(model, size=tiles, overlap=tile_overlap, batch_size=batch_size)
    kept = None if classes is None else list(classes)
    # Checks the arguments before the first image.
    model.stream([], score_threshold=score_threshold, classes=kept, batch_size=batch_size)
    folder = _new_folder('predictions') if out is None else Path(out).expanduser()
    sources = find_sources(inputs, exclude=folder)
    if track:
        if all(source.kind == 'picture' for source in sources):
            raise UserError('--track follows objects through videos, and there is none among the '
                            'inputs')
        Tracker(fps=_USUAL_FPS, score_threshold=score_threshold)  # is it installed?
    _check_folder(folder, overwrite)
    summary = Summary(folder)
    work = _Work(model, dict(score_threshold=score_threshold, classes=kept,
                             batch_size=batch_size), summary, draw, save_crops, track, progress)
    work.run(sources)
    return summary


def _new_folder(name: str) -> Path:
    """Return a folder of the current one that does not exist."""
    number, path = 2, Path(name)
    while path.exists():
        path, number = Path(f'{name}_{number}'), number + 1
    return path


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Create the folder of the outputs.

    Raises:
        UserError: If it has something already, or can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(folder.iterdir()):
            raise UserError(f'{folder} is not empty: choose another folder with --out, or pass '
                            '--overwrite')
    except OSError as error:
        raise UserError(f'can\'t write {folder}: {error.strerror or error}') from error


class _BadFrameError(UserError):
    """A frame of a video that ends its prediction, but not that of other inputs."""


@dataclass
class _Work:
    """One call of `predict`.

    Attributes:
        model: The model, with tiles or without.
        options: The keyword arguments of its calls.
        summary: What was done so far.
        draw: Whether to write annotated pictures and videos.
        save_crops: Whether to write each object.
        track: Whether to follow objects through videos.
        progress: Whether to show a progress bar.
    """

    model: Model
    options: dict[str, Any]
    summary: Summary
    draw: bool
    save_crops: bool
    track: bool
    progress: bool

    def run(self, sources: Sequence[Source]) -> None:
        from tqdm import tqdm

        with ExitStack() as stack:
            self._tables = _Tables(stack, self.summary.out, self.model, self.track)
            self._bar = stack.enter_context(tqdm(total=_expected(sources), unit='image',
                                                 disable=not self.progress))
            try:
                pending: list[tuple[Source, Image]] = []
                for source in sources:
                    if source.kind == 'picture':
                        image = self._read(source)
                        if image is not None:
                            pending.append((source, image))
                        if len(pending) < self.options['batch_size']:
                            continue
                    self._predict_pictures(pending)
                    pending.clear()
                    if source.kind != 'picture':
                        self._predict_video(source)
                self._predict_pictures(pending)
            except KeyboardInterrupt:
                self.summary.interrupted = True
            self._tables.finish()

    def _fail(self, source: Source, error: Exception) -> None:
        """Name an input that can't be read, and go on."""
        self.summary.failures.append(str(error))
        self._say(f'error: {error}')
        if source.kind == 'picture':
            self._bar.update()

    def _say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    # --- pictures -----------------------------------------------------------------------------

    def _read(self, source: Source) -> Image | None:
        """Return a picture; None if it can't be read, which is reported."""
        try:
            content = read_content(source)
            image = decode_image(content, source.location, max_pixels=self.model.max_pixels)
        except UserError as error:
            self._fail(source, error)
            return None
        if has_several_frames(content):
            self._say(f'note: {source.location} has several frames; the first one is predicted')
        return image

    def _predict_pictures(self, batch: list[tuple[Source, Image]]) -> None:
        try:
            results = self.model([image for _, image in batch], **self.options)
        except UserError as error:
            if len(batch) == 1:
                source = batch[0][0]
                self._fail(source, UserError(f'can\'t predict {source.location}: {error}'))
            else:  # which one is it?
                for one in batch:
                    self._predict_pictures([one])
            return
        for (source, _), result in zip(batch, results, strict=True):
            result.source = source.location
            self.summary.pictures += 1
            self._keep(source, result, source.stem)
            if self.draw:
                suffix = PurePosixPath(source.name).suffix.lower()
                kind = '.jpg' if suffix in ('.jpg', '.jpeg', '.jpe', '.jfif') else '.png'
                result.save(self.summary.out / 'pictures' / (source.stem + kind))
            self._bar.update()

    # --- videos -------------------------------------------------------------------------------

    def _predict_video(self, source: Source) -> None:
        before = self.summary.frames
        with ExitStack() as stack:
            try:
                path = stack.enter_context(local_file(source))
                frames, fps, announced = _open_video(source, path)
            except UserError as error:
                self._fail(source, error)
                return
            # Closed before a file that was fetched is removed.
            stack.callback(frames.close)
            try:
                self._predict_frames(source, frames, fps, stack)
            except _BadFrameError as error:
                self._fail(source, error)
                return
        count = self.summary.frames - before
        if count < _COMPLETE * announced:
            self._say(f'note: {source.location} ends after {count} of the {announced} frames that '
                      'it announces')

    def _predict_frames(self, source: Source, frames: Iterator[Image], fps: float,
                        stack: ExitStack) -> None:
        """Predict the frames of a video.

        Raises:
            _BadFrameError: If one can't be predicted, or written with the others.
            UserError: If the results can't be written.
        """
        tracker = Tracker(fps=fps, score_threshold=self.options['score_threshold']) \
            if self.track else None
        sink: Any = None
        number, shape = 0, (0, 0)
        results = self.model.stream(frames, **self.options)
        while (result := _next(results, source, number + 1)) is not None:
            number += 1
            if tracker is not None:
                result = tracker.update(result)
            if result.shape != shape and number > 1:
                raise _BadFrameError(f'frame {number} of {source.location} has another size than '
                                     'those before it; the video is predicted up to there')
            shape = result.shape
            result.source = source.location
            self.summary.frames += 1
            self._keep(source, result, f'{source.stem}/{number:06d}', frame=number)
            if self.draw:
                if sink is None:
                    path = self.summary.out / 'videos' / f'{source.stem}.mp4'
                    sink = stack.enter_context(_VideoFile(path, shape, fps))
                sink.write(result.plot())
            self._bar.update()

    # --- outputs ------------------------------------------------------------------------------

    def _keep(self, source: Source, result: Result, stem: str, frame: int | None = None) -> None:
        """Write all of a result but the annotated picture or video."""
        self.summary.counts.update(result.names)
        self._tables.add(source, result, frame)
        if result.label_map is not None:
            _write_label_map(self.summary.out / 'label_maps' / f'{stem}.png', result)
        if self.save_crops:
            _write_crops(self.summary.out / 'crops', stem, result)


class _Tables:
    """Writer of ``predictions.json`` and ``predictions.csv``, entry by entry.

    A long video has more entries than should be in memory.
    """

    def __init__(self, stack: ExitStack, folder: Path, model: Model, track: bool) -> None:
        self._json: IO[str] = stack.enter_context(write_atomically(folder / 'predictions.json'))
        self._csv = csv.writer(stack.enter_context(write_atomically(folder / 'predictions.csv')),
                               lineterminator='\n')
        self._images: list[dict[str, Any]] = []
        self._count = 0
        self._track = track
        categories = [{'id': k, 'name': name} for k, name in enumerate(model.class_names)]
        self._json.write('{"info": ' + json.dumps({'description': f'evit-mm {__version__}'})
                         + ',\n"categories": ' + json.dumps(categories) + ',\n"annotations": [')
        columns = ['pixels', 'share'] if model.task == 'semantic segmentation' else [
            'score', 'left', 'top', 'right', 'bottom', *(['track'] if track else [])]
        self._csv.writerow(['file', 'frame', 'class', *columns])

    def add(self, source: Source, result: Result, frame: int | None) -> None:
        height, width = result.shape
        image: dict[str, Any] = {'id': len(self._images), 'file_name': source.name,
                                 'width': width, 'height': height}
        if frame is not None:
            image['frame'] = frame
        self._images.append(image)
        for entry in result.to_coco(image_id=image['id']):
            self._json.write(('\n' if not self._count else ',\n')
                             + json.dumps({'id': self._count, 'iscrowd': 0, **entry}))
            self._count += 1
            self._csv.writerow([source.name, '' if frame is None else frame,
                                result.class_names[entry['category_id']],
                                *self._values(entry, result)])

    def finish(self) -> None:
        self._json.write('],\n"images": [')
        for number, image in enumerate(self._images):
            self._json.write(('\n' if not number else ',\n') + json.dumps(image))
        self._json.write(']}\n')

    def _values(self, entry: dict[str, Any], result: Result) -> list[str]:
        """Return the columns after the class."""
        if result.label_map is not None:
            return [f'{entry["area"]:.0f}', f'{entry["area"] / result.label_map.size:.6f}']
        left, top, width, height = entry['bbox']
        corners = [f'{value:.2f}' for value in (left, top, left + width, top + height)]
        track = entry.get('track_id', -1)
        return [f'{entry["score"]:.4f}', *corners,
                *([str(track) if track >= 0 else ''] if self._track else [])]


def _write_label_map(path: Path, result: Result) -> None:
    """Write a label map as PNG: with a palette, or of more than 255 classes with 16 bits.

    Raises:
        UserError: If it can't be written.
    """
    assert result.label_map is not None
    if result.label_map.dtype != np.uint8:
        write_picture(path, result.label_map)
        return
    image = Pillow.fromarray(result.label_map)
    image.putpalette(list(chain.from_iterable(result.palette)) + [0] * 3 * (
        256 - len(result.palette)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path, 'wb', is_synced=False) as file:
            image.save(file, 'PNG')
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror or error}') from error


def _write_crops(folder: Path, stem: str, result: Result) -> None:
    """Write each object of a result as a picture, in a folder of its class."""
    from supervision import crop_image

    assert result.boxes is not None and result.image is not None
    height, width = result.shape
    for number, (box, name) in enumerate(zip(result.boxes, result.names, strict=True), 1):
        # Whole pixels, at least one.
        left, top = np.floor(box[:2]).clip(0, (width - 1, height - 1))
        right, bottom = np.ceil(box[2:]).clip((left + 1, top + 1), (width, height))
        crop = crop_image(result.image, np.array([left, top, right, bottom], int))
        place = re.sub(r'[^\w .-]', '_', name).strip(' .') or 'unnamed'
        write_picture(folder / place / f'{stem}_{number}.jpg', crop)


def _expected(sources: Sequence[Source]) -> int | None:
    """Return how many images there are; None if a video or webcam is among them."""
    return len(sources) if all(source.kind == 'picture' for source in sources) else None


def _open_video(source: Source, path: str) -> tuple[Any, float, int]:
    """Open a video or a webcam.

    Returns:
        A generator of its frames, the frames per second, and how many it announces, 0 if unknown.

    Raises:
        UserError: If it can't be opened, or has no frame.
    """
    if source.kind == 'webcam':
        fps, announced = _USUAL_FPS, 0
        frames = _webcam_frames(int(source.location))
    else:
        from supervision import VideoInfo, get_video_frames_generator

        try:
            info = VideoInfo.from_video_path(path)
        except Exception as error:  # its own type
            raise UserError(f'can\'t read the video {source.location}: no decoder knows it, or it '
                            'is damaged') from error
        fps, announced = info.fps, max(info.total_frames or 0, 0)
        frames = get_video_frames_generator(path)
    try:
        first = next(frames)
    except StopIteration:
        raise UserError(f'can\'t read the video {source.location}: it has no frame that can be '
                        'decoded') from None
    if not 0 < fps < 1000:
        fps = _USUAL_FPS

    def all_frames() -> Iterator[Image]:
        try:
            yield first
            yield from frames
        finally:
            frames.close()

    return all_frames(), fps, announced


def _webcam_frames(number: int) -> Any:
    """Yield the pictures of a webcam until it ends.

    Raises:
        UserError: If there is no such webcam.
    """
    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise UserError(f'webcam {number} can\'t be opened: is it connected, and used by no '
                            'other program?')
        while True:
            done, frame = camera.read()
            if not done:
                return
            yield frame
    finally:
        camera.release()


def _next(results: Iterator[Result], source: Source, number: int) -> Result | None:
    """Return the next result of a video; None after the last.

    Raises:
        _BadFrameError: If the frame can't be predicted.
    """
    try:
        return next(results, None)
    except UserError as error:
        raise _BadFrameError(f'can\'t predict {source.location} from frame {number} on: {error}'
                             ) from error


class _VideoFile:
    """Video that replaces ``path`` when the block ends, unless it could not be written.

    OpenCV says nothing about a full disk, so that the file is looked at in the end.
    """

    def __init__(self, path: Path, shape: tuple[int, int], fps: float) -> None:
        """Open the video.

        Args:
            path: The file; its folder is created.
            shape: Height and width.
            fps: Frames per second.

        Raises:
            UserError: If it can't be written.
        """
        from supervision import VideoInfo, VideoSink

        self._path = path
        self._unfinished = path.with_name(f'.{os.getpid()}.tmp{path.suffix}')
        self._count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished.touch()
            self._sink: Any = VideoSink(
                str(self._unfinished), VideoInfo(width=shape[1], height=shape[0], fps=fps))
            self._sink.__enter__()
        except (OSError, RuntimeError) as error:
            with suppress(OSError):  # of a folder that could not be created
                self._unfinished.unlink()
            raise self._error(getattr(error, 'strerror', None) or 'OpenCV can\'t encode it'
                              ) from error

    def __enter__(self) -> '_VideoFile':
        return self

    def write(self, picture: Image) -> None:
        """Write a frame (H, W, 3), BGR.

        Raises:
            UserError: If the disk is full.
        """
        self._sink.write_frame(picture)
        self._count += 1
        if self._is_disk_full():
            raise self._error(os.strerror(errno.ENOSPC))

    def __exit__(self, *error: Any) -> None:
        self._sink.__exit__(*error)
        is_full = self._is_disk_full()
        try:
            if isinstance(error[1], UserError) and not isinstance(error[1], _BadFrameError):
                return
            video = cv2.VideoCapture(str(self._unfinished))
            count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
            video.release()
            if count != self._count:
                raise self._error(os.strerror(errno.ENOSPC) if is_full else
                                  f'of {self._count} frames, {count} are in the file')
            self._unfinished.replace(self._path)
        except OSError as failure:
            raise self._error(failure.strerror or str(failure)) from failure
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _is_disk_full(self) -> bool:
        return shutil.disk_usage(self._path.parent).free < _VIDEO_NEEDS

    def _error(self, reason: str) -> UserError:
        return UserError(f'can\'t write {self._path}: {reason}')
