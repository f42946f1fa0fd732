"""A small, learnable data set, drawn from a seed in COCO's layout and in ADE20K's.

`generate_coco` draws coloured shapes on cluttered backgrounds for detection and instance
segmentation; `generate_ade` draws plain scenes, outdoors and indoors, for semantic
segmentation. Nothing is downloaded, and both folders hold what the originals hold (crowd
regions, tiny objects, portrait and landscape images, unlabelled pixels), so that the same
configs and the same evaluation run on them.

An image depends on (seed, split, its index, the requested size) alone: asking for more images
adds some and leaves the others, byte for byte, as they were.
"""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evit_mm.errors import UserError

__all__ = ['SCENE_CLASSES', 'SHAPE_CLASSES', 'Instance', 'PreparedData', 'draw_scene',
           'draw_shapes', 'generate_ade', 'generate_coco']

FloatArray: TypeAlias = npt.NDArray[np.float32]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

SHAPE_CLASSES: Final = ('circle', 'square', 'triangle', 'star')
"""Names of the detection classes; the category ids in the files are 1 to 4, in this order."""

SCENE_CLASSES: Final[dict[int, str]] = {
    1: 'wall', 2: 'building', 3: 'sky', 4: 'floor', 5: 'tree', 7: 'road', 9: 'windowpane',
    10: 'grass', 13: 'person', 15: 'door', 21: 'car',
}
"""Value in the label maps to ADE20K class name (its index among the 150, plus 1; 0: no class)."""

_GENERATOR: Final = 'evit_mm.data.shapes'
_FORMAT: Final = 1  # raise it whenever the drawing changes: older folders then count as different
_MANIFEST: Final = 'shapes.json'
_MARKER: Final = 'shapes.partial'
_SPLITS: Final = ('train', 'val')
_MIN_SIDE, _MAX_SIDE = 64, 2048
_MAX_IMAGES: Final = 1_000_000
_JPEG_QUALITY: Final = 92


@dataclass(frozen=True)
class PreparedData:
    """What a generator call left on disk.

    Attributes:
        root: The data set's folder.
        layout: 'coco' or 'ade'.
        reused: Whether the folder already held exactly this data set and was left as it is.
        images: Images per split ('train', 'val').
        annotations: Annotations per split, crowd regions included; empty for 'ade'.
        classes: Class names.
    """

    root: Path
    layout: str
    reused: bool
    images: dict[str, int]
    annotations: dict[str, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Instance:
    """One annotated thing of a drawn image.

    Attributes:
        category_id: 1-based index into `SHAPE_CLASSES`.
        mask: Visible pixels, shape (H, W).
        crowd: Whether the mask is a region full of shapes of the class, not one shape.
    """

    category_id: int
    mask: BoolArray
    crowd: bool = False


def generate_coco(
    root: str | os.PathLike[str],
    *,
    num_train: int = 400,
    num_val: int = 100,
    image_size: tuple[int, int] = (192, 192),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> PreparedData:
    """Write the detection data set in COCO's layout.

    `root` gets `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json`. A
    folder that already holds exactly this data set is left as it is; one whose generation was
    interrupted is generated again.

    Args:
        root: Folder to write; made if missing.
        num_train: Training images.
        num_val: Validation images.
        image_size: (height, width) in px around which the images' sizes vary.
        seed: Same seed, same bytes in every file.
        overwrite: Replace a data set of other settings, or write into a folder that holds
            other files. Files that the generator did not make are never deleted or replaced.
        progress: Show a progress bar on stderr.

    Raises:
        UserError: If a number is out of range, or the folder can't or must not be written.
    """
    settings = _checked_settings('coco', num_train, num_val, image_size, seed)
    return _generate(Path(root), settings, overwrite, progress)


def generate_ade(
    root: str | os.PathLike[str],
    *,
    num_train: int = 400,
    num_val: int = 100,
    image_size: tuple[int, int] = (192, 192),
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> PreparedData:
    """Write the segmentation data set in the layout of ADEChallengeData2016.

    `root` gets `images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`;
    the label maps hold 0 (no class) and the ids of `SCENE_CLASSES`, as `reduce_zero_label=True`
    expects them. Arguments, reuse and errors are those of `generate_coco`.
    """
    settings = _checked_settings('ade', num_train, num_val, image_size, seed)
    return _generate(Path(root), settings, overwrite, progress)


# --- what is on disk, and whose it is ---------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """All that the bytes of a data set depend on."""

    layout: str
    num_train: int
    num_val: int
    height: int
    width: int
    seed: int

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.height, self.width

    def count(self, split: str) -> int:
        """Images of a split."""
        return self.num_train if split == 'train' else self.num_val

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the layout's classes."""
        return SHAPE_CLASSES if self.layout == 'coco' else tuple(SCENE_CLASSES.values())

    def files(self) -> Iterator[str]:
        """Paths of all data files, relative to the root, in the order of writing."""
        for split in _SPLITS:
            for index in range(self.count(split)):
                yield from _image_files(self.layout, split, index)
            if self.layout == 'coco':
                yield _annotation_file(split)


def _checked_settings(
    layout: str, num_train: int, num_val: int, image_size: tuple[int, int], seed: int
) -> _Settings:
    for name, count in (('num_train', num_train), ('num_val', num_val)):
        if not 1 <= count <= _MAX_IMAGES:
            raise UserError(f'{name} must be between 1 and {_MAX_IMAGES}, got {count}')
    height, width = image_size
    if not (_MIN_SIDE <= height <= _MAX_SIDE and _MIN_SIDE <= width <= _MAX_SIDE):
        raise UserError(f'the image size must be between {_MIN_SIDE} and {_MAX_SIDE} px a side, '
                        f'got {height}x{width}')
    if max(height, width) > 3 * min(height, width):
        raise UserError('the image size must not be longer than 3 times its shorter side, '
                        f'got {height}x{width}')
    if not 0 <= seed < 2**32:
        raise UserError(f'seed must be between 0 and 2**32 - 1, got {seed}')
    return _Settings(layout, int(num_train), int(num_val), int(height), int(width), int(seed))


def _image_files(layout: str, split: str, index: int) -> tuple[str, ...]:
    if layout == 'coco':
        return (f'{split}2017/{index + 1:012d}.jpg',)
    folder = 'training' if split == 'train' else 'validation'
    name = f'ADE_{split}_{index + 1:08d}'
    return f'images/{folder}/{name}.jpg', f'annotations/{folder}/{name}.png'


def _annotation_file(split: str) -> str:
    return f'annotations/instances_{split}2017.json'


def _generate(root: Path, settings: _Settings, overwrite: bool, progress: bool) -> PreparedData:
    try:
        earlier = _claim(root, settings, overwrite)
        if isinstance(earlier, PreparedData):
            return earlier
        root.mkdir(parents=True, exist_ok=True)
        # The marker names all that may be lying around until the manifest is written, so that
        # an interrupted run can be cleared without guessing.
        _write_json(root / _MARKER, {
            'generator': _GENERATOR,
            'settings': [asdict(one) for one in (settings, *earlier)],
        })
        (root / _MANIFEST).unlink(missing_ok=True)
        _remove_files(root, earlier, keep=settings)
        annotations = _write_data(root, settings, progress)
        _write_json(root / _MANIFEST, {
            'generator': _GENERATOR,
            'format': _FORMAT,
            'settings': asdict(settings),
            'classes': list(settings.classes),
            'annotations': annotations,
        })
        (root / _MARKER).unlink()
    except OSError as error:
        place = error.filename or root
        raise UserError(f'cannot write {place}: {error.strerror or error}; choose another folder '
                        'or make this one writable') from error
    return _report(root, settings, annotations, reused=False)


def _claim(root: Path, settings: _Settings, overwrite: bool) -> PreparedData | list[_Settings]:
    """Decide whether `root` may be written.

    Returns:
        The finished data set if it is there already, else the settings of the generator's
        files that lie in `root` and have to go.
    """
    _check_is_folder(root)
    if not root.exists() or not any(root.iterdir()):
        return []
    manifest, marker = _read_json(root / _MANIFEST), _read_json(root / _MARKER)
    found = _parse_settings(manifest.get('settings'))
    if found is not None and manifest.get('generator') == _GENERATOR:
        same = found == settings and manifest.get('format') == _FORMAT
        if same and all((root / name).is_file() for name in settings.files()):
            (root / _MARKER).unlink(missing_ok=True)
            return _report(root, settings, dict(manifest.get('annotations', {})), reused=True)
        if not same and not overwrite:
            raise UserError(f'{root} holds a shapes data set of other settings: choose another '
                            'folder, or replace it with overwrite (--overwrite)')
        earlier = [found]
    elif marker.get('generator') == _GENERATOR:
        listed = marker.get('settings')
        parsed = [_parse_settings(one) for one in listed] if isinstance(listed, list) else []
        earlier = [one for one in parsed if one is not None]
    elif overwrite:
        earlier = []
    else:
        raise UserError(f'{root} is not empty and was not made by this generator: choose another '
                        'folder, or write into it all the same with overwrite (--overwrite)')
    own = {name for one in earlier for name in one.files()}
    own |= {_MANIFEST, _MARKER} if earlier else set()
    for name in (_MANIFEST, _MARKER, *settings.files()):
        if name not in own and os.path.lexists(root / name):
            raise UserError(f'{root / name} was not made by this generator and would be '
                            'replaced: choose another folder or move it away')
    return earlier


def _check_is_folder(root: Path) -> None:
    for folder in (root, *root.parents):
        if folder.is_dir():
            return
        if os.path.lexists(folder):
            raise UserError(f'{folder} is a file, but a folder is needed there: choose another '
                            'path or move the file away')


def _parse_settings(value: object) -> _Settings | None:
    """Settings from a manifest or a marker; None if it isn't one of this generator's."""
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(_Settings)}:
        return None
    numbers = [number for name, number in value.items() if name != 'layout']
    if value['layout'] not in ('coco', 'ade') or not all(type(n) is int for n in numbers):
        return None
    return _Settings(**value)


def _report(
    root: Path, settings: _Settings, annotations: dict[str, int], reused: bool
) -> PreparedData:
    images = {split: settings.count(split) for split in _SPLITS}
    return PreparedData(root, settings.layout, reused, images, annotations, settings.classes)


def _remove_files(root: Path, earlier: Iterable[_Settings], keep: _Settings) -> None:
    """Delete the files of earlier data sets that the coming one does not replace."""
    kept = set(keep.files())
    for one in earlier:
        names = [Path(name) for name in one.files()]
        for name in names:
            if name.as_posix() not in kept:
                (root / name).unlink(missing_ok=True)
        folders = {folder for name in names for folder in name.parents if folder != Path()}
        for folder in sorted(folders, reverse=True):  # subfolders first
            if (root / folder).is_dir() and not any((root / folder).iterdir()):
                (root / folder).rmdir()


def _write_data(root: Path, settings: _Settings, progress: bool) -> dict[str, int]:
    """Draw and write every image; returns the annotations per split (empty for 'ade')."""
    totals = {}
    with tqdm(total=settings.num_train + settings.num_val, unit='img', disable=not progress,
              desc=f'{settings.layout} shapes') as bar:
        for folder in {(root / name).parent for name in settings.files()}:
            folder.mkdir(parents=True, exist_ok=True)
        for split in _SPLITS:
            if settings.layout == 'coco':
                totals[split] = _write_coco_split(root, settings, split, bar.update)
            else:
                _write_ade_split(root, settings, split, bar.update)
    return totals


def _write_coco_split(
    root: Path, settings: _Settings, split: str, advance: Callable[[int], object]
) -> int:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(settings.count(split)):
        image, instances = draw_shapes(settings.image_size, settings.seed, split, index)
        (name,) = _image_files('coco', split, index)
        _write_image(root / name, image)
        images.append({
            'license': 1, 'file_name': Path(name).name, 'coco_url': '', 'height': image.shape[0],
            'width': image.shape[1], 'date_captured': '2017-01-01 00:00:00', 'flickr_url': '',
            'id': index + 1,
        })
        for instance in instances:
            annotations.append(_coco_annotation(instance, index + 1, len(annotations) + 1))
        advance(1)
    _write_json(root / _annotation_file(split), {
        'info': {
            'description': 'Synthetic shapes in the layout of COCO 2017', 'url': '',
            'version': str(_FORMAT), 'year': 2017, 'contributor': _GENERATOR,
            'date_created': '2017/01/01',
        },
        'licenses': [{'url': '', 'id': 1, 'name': 'Generated; free of rights'}],
        'images': images,
        'annotations': annotations,
        'categories': [{'supercategory': 'shape', 'id': number, 'name': name}
                       for number, name in enumerate(SHAPE_CLASSES, start=1)],
    })
    return len(annotations)


def _write_ade_split(
    root: Path, settings: _Settings, split: str, advance: Callable[[int], object]
) -> None:
    for index in range(settings.count(split)):
        image, labels = draw_scene(settings.image_size, settings.seed, split, index)
        image_name, label_name = _image_files('ade', split, index)
        _write_image(root / image_name, image)
        _write_image(root / label_name, labels)
        advance(1)


def _write_image(path: Path, image: ByteArray) -> None:
    # Encoded first and written by Python, because cv2.imwrite tells no reason when it fails.
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == '.jpg' else []
    done, encoded = cv2.imencode(path.suffix, image, options)
    if not done:
        raise RuntimeError(f'OpenCV cannot encode {path.suffix} files')
    path.write_bytes(encoded.tobytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    # One step from absent to complete: a marker or manifest cut short would be nobody's.
    unfinished = path.with_name(f'{path.name}.tmp')
    unfinished.write_text(json.dumps(content) + '\n', encoding='utf-8')
    unfinished.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON object; empty if the file is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- masks to annotations ---------------------------------------------------------------------


def _coco_annotation(instance: Instance, image_id: int, annotation_id: int) -> dict[str, Any]:
    mask = instance.mask
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        'segmentation': _run_lengths(mask) if instance.crowd else _polygons(mask),
        'area': float(mask.sum()),
        'iscrowd': int(instance.crowd),
        'image_id': image_id,
        'bbox': [float(left), float(top), float(columns[-1] + 1 - left),
                 float(rows[-1] + 1 - top)],
        'category_id': instance.category_id,
        'id': annotation_id,
    }


def _run_lengths(mask: BoolArray) -> dict[str, list[int]]:
    """COCO's uncompressed RLE: lengths of alternating runs, zeros first, column by column."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [0, *changes.tolist(), flat.size]
    counts = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    return {'counts': [0, *counts] if flat[0] else counts, 'size': list(mask.shape)}


def _polygons(mask: BoolArray) -> list[list[float]]:
    """Polygons along the pixels' edges, so that rasterising them gives the mask back exactly.

    COCO's polygons are united and can't cut a hole: a part with a hole is split through it.
    """
    polygons: list[list[float]] = []
    # At twice the size, an odd coordinate is a pixel's far edge and an even one its near edge.
    doubled = np.kron(mask, np.ones((2, 2), dtype=bool)).astype(np.uint8)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for number, contour in enumerate(contours):
        _, _, child, parent = hierarchy[0][number]
        if parent >= 0:
            continue
        if child >= 0:
            part = np.zeros_like(doubled)
            cv2.drawContours(part, contours, number, 1, cv2.FILLED, hierarchy=hierarchy)
            whole = (part[::2, ::2] > 0) & mask
            hole = contours[child][:, 0, 0]
            middle = (int(hole.min()) + int(hole.max())) // 4
            for half in (slice(None, middle), slice(middle, None)):
                piece = np.zeros_like(mask)
                piece[:, half] = whole[:, half]
                polygons += _polygons(piece)
        else:
            polygons.append(_without_straight_points((contour[:, 0, :] + 1) // 2))
    return polygons


def _without_straight_points(points: npt.NDArray[Any]) -> list[float]:
    """Flat x, y list of a closed polygon's corners; points of shape (N, 2)."""
    moved = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    before, after = moved - np.roll(moved, 1, axis=0), np.roll(moved, -1, axis=0) - moved
    corner = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    # Floats also where they are whole: MMDetection scales polygons in place.
    return [float(value) for value in moved[corner].ravel()]


# --- drawing ----------------------------------------------------------------------------------

# Most shapes of a class are of about one hue, the others of any: a detector trained for minutes
# gets along by colour, and a better one still has to learn the outlines.
_HUES: Final = (0.0, 0.28, 0.55, 0.8)
_OWN_HUE_SHARE: Final = 0.75

_FINENESS: Final = 4  # drawn this many times finer, which gives soft edges and masks that fit them


def _image_rng(kind: int, seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([kind, seed, _SPLITS.index(split), index])


def _vary_size(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of about the requested area, wider or taller by up to a third."""
    stretch = float(np.sqrt(rng.uniform(1.0, 1.33)))
    if rng.random() < 0.5:
        stretch = 1 / stretch
    return round(image_size[0] / stretch), round(image_size[1] * stretch)


def _coverage(polygon: FloatArray, height: int, width: int) -> FloatArray:
    """Share of each pixel that a polygon covers; polygon (N, 2) in px, result (H, W) in 0..1."""
    fine = np.zeros((height * _FINENESS, width * _FINENESS), dtype=np.uint8)
    shift = 4
    # OpenCV's coordinates name pixels' centres; ours the corner of the first pixel as 0.
    points = np.round((polygon * _FINENESS - 0.5) * 2**shift).astype(np.int32)
    cv2.fillPoly(fine, [points], 255, lineType=cv2.LINE_8, shift=shift)
    coarse = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return coarse.astype(np.float32) / np.float32(255)


def _rotated(points: FloatArray, angle: float) -> FloatArray:
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, sine], [-sine, cosine]], dtype=np.float32)
    return (points @ turn).astype(np.float32)


def _outline(category_id: int, rng: np.random.Generator) -> FloatArray:
    """Corners of one shape, randomly turned, of extent about 1 around (0, 0); shape (N, 2)."""
    name = SHAPE_CLASSES[category_id - 1]
    corners = {'circle': 72, 'square': 4, 'triangle': 3, 'star': 10}[name]
    angles = np.arange(corners) * (2 * np.pi / corners)
    radii = np.full(corners, 0.5 if name == 'circle' else 0.58)
    if name == 'star':
        radii[1::2] *= rng.uniform(0.4, 0.5)
    elif name == 'triangle':
        angles = angles + rng.uniform(-0.12, 0.12, size=3)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return _rotated(points.astype(np.float32), rng.uniform(0, 2 * np.pi))


def _colour(hue: float, saturation: float, value: float) -> FloatArray:
    """BGR in 0..255 from hue, saturation and value in 0..1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)[::-1], np.float32) * 255


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> FloatArray:
    """Smooth noise of standard deviation about 1 with `cells` grains across; (H, W)."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def _ramp(height: int, width: int, angle: float) -> FloatArray:
    """Gradient from 0 to 1 across the image; (H, W)."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle))
    ramp -= ramp.min()
    return (ramp / max(float(ramp.max()), 1.0)).astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """Dull, uneven ground for the shapes: gradient, clouds and often a pattern; (H, W, 3)."""
    ends = [_colour(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.25, 0.85))
            for _ in range(2)]
    ramp = _ramp(height, width, rng.uniform(0, 2 * np.pi))[..., None]
    canvas = ends[0] * (1 - ramp) + ends[1] * ramp
    for cells, strength in ((4, 14), (11, 9), (29, 6)):
        canvas += strength * _clouds(rng, height, width, cells)[..., None]
    pattern = rng.choice(['none', 'stripes', 'checks'])
    if pattern != 'none':
        waves = rng.uniform(6, 18)
        angle = rng.uniform(0, np.pi)
        wave = np.sin(_ramp(height, width, angle) * 2 * np.pi * waves)
        if pattern == 'checks':
            wave = np.sign(wave * np.sin(_ramp(height, width, angle + np.pi / 2)
                                         * 2 * np.pi * waves))
        canvas += rng.uniform(5, 14) * wave[..., None]
    return canvas.astype(np.float32)


def _add_strokes(rng: np.random.Generator, canvas: FloatArray) -> FloatArray:
    """Bent lines of any colour: edges that belong to no object."""
    height, width = canvas.shape[:2]
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 6)):
        corners = rng.uniform(0, 1, size=(rng.integers(2, 5), 2)) * (width, height)
        colour = _colour(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.2, 1))
        thickness = max(1, round(min(height, width) * rng.uniform(0.005, 0.02)))
        cv2.polylines(pixels, [corners.astype(np.int32)], False, colour.tolist(), thickness,
                      cv2.LINE_AA)
    return pixels.astype(np.float32)


def _paint_shape(
    rng: np.random.Generator, canvas: FloatArray, coverage: FloatArray, category_id: int
) -> None:
    """Blend one shape of a vivid colour, set off from what lies under it, into the canvas."""
    height, width = coverage.shape
    inside = coverage >= 0.5
    under = canvas[inside].mean(axis=0)
    colour = under
    own_hue = rng.random() < _OWN_HUE_SHARE
    for _ in range(12):
        hue = rng.normal(_HUES[category_id - 1], 0.05) if own_hue else rng.random()
        colour = _colour(hue, rng.uniform(0.55, 1), rng.uniform(0.45, 1))
        if np.linalg.norm(colour - under) > 110:
            break
    shade = 1 + rng.uniform(0, 0.25) * (_ramp(height, width, rng.uniform(0, 2 * np.pi)) - 0.5)
    shade = shade + rng.uniform(0, 0.07) * _clouds(rng, height, width, 23)
    if rng.random() < 0.4:
        depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
        shade = np.where(depth < max(1.0, 0.08 * float(depth.max())), 0.55, 1) * shade
    paint = colour * shade[..., None]
    canvas += coverage[..., None] * (paint - canvas)


def _finish(rng: np.random.Generator, canvas: FloatArray) -> ByteArray:
    """Camera noise, and 8 bits."""
    noisy = canvas + rng.normal(0, rng.uniform(2, 6), size=canvas.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def draw_shapes(
    image_size: tuple[int, int], seed: int, split: str, index: int
) -> tuple[ByteArray, list[Instance]]:
    """Draw one image of the detection data set.

    Every eighth image has a crowd region and another eighth has tiny shapes, so that even the
    smallest data set holds both.

    Args:
        image_size: (height, width) in px around which the size varies.
        seed: The data set's seed.
        split: 'train' or 'val'.
        index: Index of the image in its split, from 0.

    Returns:
        BGR image of shape (H, W, 3), and its instances with visible masks of shape (H, W).
    """
    rng = _image_rng(0, seed, split, index)
    height, width = _vary_size(rng, image_size)
    canvas = _add_strokes(rng, _background(rng, height, width))
    crowd = _add_crowd(rng, canvas) if index % 8 == 2 else None
    taken = crowd.mask if crowd else np.zeros((height, width), dtype=bool)
    shapes = _add_shapes(rng, canvas, taken, int(rng.integers(1, 3 if crowd else 6)))
    if index % 8 == 1:
        shapes += _add_tiny(rng, canvas, shapes)
    return _finish(rng, canvas), shapes + ([crowd] if crowd else [])


def _random_category(rng: np.random.Generator) -> int:
    return int(rng.integers(1, len(SHAPE_CLASSES) + 1))


def _add_crowd(rng: np.random.Generator, canvas: FloatArray) -> Instance:
    """Paint a cluster of small shapes of one class; the instance covers them and the gaps."""
    height, width = canvas.shape[:2]
    category_id = _random_category(rng)
    radius = rng.uniform(0.15, 0.22) * min(height, width)
    member = radius * rng.uniform(0.35, 0.45)
    reach = radius + member
    centre = rng.uniform((reach, reach), (width - reach, height - reach))
    union = np.zeros((height, width), dtype=bool)
    # Placed on the turns of a sunflower: dense, hardly overlapping, and no rejection needed.
    count = int(rng.integers(9, 16))
    turn = rng.uniform(0, 2 * np.pi)
    for number in range(count):
        distance = radius * np.sqrt((number + 0.5) / count)
        angle = turn + number * np.pi * (3 - np.sqrt(5))
        place = centre + distance * np.array([np.cos(angle), np.sin(angle)])
        size = member * rng.uniform(0.8, 1.2)
        polygon = (_outline(category_id, rng) * size + place).astype(np.float32)
        coverage = _coverage(polygon, height, width)
        _paint_shape(rng, canvas, coverage, category_id)
        union |= coverage > 0
    bridge = 2 * round(member * 0.5) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (bridge, bridge))
    # Padded, since closing next to the frame would otherwise reach beyond it.
    closed = cv2.morphologyEx(np.pad(union.astype(np.uint8), bridge), cv2.MORPH_CLOSE, kernel)
    return Instance(category_id, closed[bridge:-bridge, bridge:-bridge] > 0, crowd=True)


def _add_shapes(
    rng: np.random.Generator, canvas: FloatArray, taken: BoolArray, count: int
) -> list[Instance]:
    """Paint up to `count` shapes, at least one, later ones over earlier ones.

    A place is refused where it touches `taken` or would hide most of an earlier shape: a sliver
    that is seen but not annotated would teach a wrong background.
    """
    height, width = taken.shape
    side = min(height, width)
    placed: list[tuple[int, BoolArray, int]] = []  # category, visible mask, its area at first
    largest = 0.5
    while len(placed) < count:
        category_id = _random_category(rng)
        allowed = 0.5 if rng.random() < 0.5 else 0.0  # share of an earlier shape to cover
        for _ in range(30):
            size = side * rng.uniform(min(0.2, largest / 2), largest)
            margin = size * (0.35 if rng.random() < 0.2 else 0.55)
            centre = rng.uniform((margin, margin), (width - margin, height - margin))
            polygon = (_outline(category_id, rng) * size + centre).astype(np.float32)
            coverage = _coverage(polygon, height, width)
            mask = coverage >= 0.5
            if (not (mask & taken).any()
                    and mask.sum() > 0.6 * cv2.contourArea(polygon)
                    and all((mask & seen).sum() <= allowed * seen.sum()
                            and (seen & ~mask).sum() > 0.45 * area
                            for _, seen, area in placed)):
                _paint_shape(rng, canvas, coverage, category_id)
                placed = [(other, seen & ~mask, area) for other, seen, area in placed]
                placed.append((category_id, mask, int(mask.sum())))
                break
        else:
            if placed:
                break  # full enough
            largest *= 0.8
    return [Instance(category_id, seen) for category_id, seen, _ in placed]


def _add_tiny(
    rng: np.random.Generator, canvas: FloatArray, shapes: list[Instance]
) -> list[Instance]:
    """Paint one shape of under 8 px and one or two small ones where nothing else is."""
    height, width = canvas.shape[:2]
    taken = np.zeros((height, width), dtype=bool)
    for shape in shapes:
        taken |= shape.mask
    added: list[Instance] = []
    sizes = [rng.uniform(4.5, 6.4), *rng.uniform(9, 24, size=rng.integers(1, 3))]
    for size in sizes:
        for _ in range(50):
            category_id = _random_category(rng)
            centre = rng.uniform((size, size), (width - size, height - size))
            polygon = (_outline(category_id, rng) * size + centre).astype(np.float32)
            coverage = _coverage(polygon, height, width)
            mask = coverage >= 0.5
            if mask.any() and not (mask & taken).any():
                _paint_shape(rng, canvas, coverage, category_id)
                taken |= mask
                added.append(Instance(category_id, mask))
                break
    return added


# Per class: hue, saturation, value, spread of the value between images, and texture. Each has
# statistics of its own, so that a small network tells most of them apart by colour and grain.
_STYLES: Final[dict[int, tuple[float, float, float, float, str]]] = {
    0: (0.86, 0.75, 0.75, 0.15, 'blotches'),
    1: (0.11, 0.18, 0.82, 0.08, 'plain'),
    2: (0.03, 0.45, 0.55, 0.12, 'bricks'),
    3: (0.57, 0.45, 0.88, 0.08, 'clouds'),
    4: (0.08, 0.60, 0.45, 0.08, 'planks'),
    5: (0.34, 0.65, 0.33, 0.08, 'blotches'),
    7: (0.60, 0.05, 0.38, 0.08, 'grain'),
    9: (0.53, 0.25, 0.95, 0.04, 'panes'),
    10: (0.25, 0.60, 0.62, 0.10, 'grain'),
    13: (0.07, 0.50, 0.85, 0.10, 'plain'),
    15: (0.06, 0.80, 0.28, 0.06, 'plain'),
    21: (0.00, 0.90, 0.75, 0.15, 'plain'),
}


class _Scene:
    """A label map and its picture, painted region by region, later ones over earlier ones."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height, width
        self.labels = np.zeros((height, width), dtype=np.uint8)
        self.canvas = np.zeros((height, width, 3), dtype=np.float32)

    def paint(self, label: int, corners: npt.ArrayLike, hue: float | None = None) -> None:
        """Paint a polygon (N, 2), in shares of the width and height, as a thing of a class."""
        scale = np.array([self.width, self.height], np.float32)
        coverage = _coverage(np.asarray(corners, np.float32) * scale, self.height, self.width)
        texture = self._texture(label, hue)
        self.canvas += coverage[..., None] * (texture - self.canvas)
        self.labels[coverage >= 0.5] = label

    def box(self, label: int, left: float, top: float, right: float, bottom: float,
            hue: float | None = None) -> None:
        """Paint an upright rectangle."""
        self.paint(label, [(left, top), (right, top), (right, bottom), (left, bottom)], hue)

    def blob(self, label: int, x: float, y: float, across: float, down: float,
             roughness: float = 0.0, hue: float | None = None) -> None:
        """Paint an ellipse of the given radii, with a bumpy edge if `roughness` > 0."""
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radii = 1 + roughness * np.sin(angles * self.rng.integers(5, 9) + self.rng.uniform(0, 6))
        self.paint(label, np.stack([x + across * radii * np.cos(angles),
                                    y + down * radii * np.sin(angles)], axis=1), hue)

    def _texture(self, label: int, hue: float | None) -> FloatArray:
        rng, height, width = self.rng, self.height, self.width
        own_hue, saturation, value, spread, kind = _STYLES[label]
        base = _colour((own_hue if hue is None else hue) + rng.uniform(-0.02, 0.02),
                       saturation * rng.uniform(0.85, 1.1) if saturation < 0.9 else saturation,
                       min(1.0, value + rng.uniform(-spread, spread)))
        rows, columns = np.mgrid[0:height, 0:width]
        shade = np.ones((height, width), dtype=np.float32)
        period = max(4, min(height, width) // int(rng.integers(14, 20)))
        if kind == 'clouds':
            white = np.clip(0.35 * _clouds(rng, height, width, 6), 0, 0.8)[..., None]
            return (base * (1 - white) + 245 * white).astype(np.float32)
        if kind == 'bricks':
            course = rows // period
            joint = (rows % period == 0) | ((columns + course % 2 * period) % (2 * period) == 0)
            shade[joint] = 1.35
        elif kind == 'planks':
            shade += 0.12 * np.sin(columns // (2 * period) * 2.4).astype(np.float32)
            shade[columns % (2 * period) == 0] = 0.6
        elif kind == 'panes':
            shade += 0.1 * _ramp(height, width, 0.8)
        elif kind == 'grain':
            shade += 0.12 * rng.standard_normal((height, width), dtype=np.float32)
        elif kind == 'blotches':
            shade += 0.22 * _clouds(rng, height, width, 32)
        shade += 0.03 * _clouds(rng, height, width, 9)
        return base * shade[..., None]


def draw_scene(
    image_size: tuple[int, int], seed: int, split: str, index: int
) -> tuple[ByteArray, ByteArray]:
    """Draw one image of the segmentation data set; two of three are outdoors.

    Args:
        image_size: (height, width) in px around which the size varies.
        seed: The data set's seed.
        split: 'train' or 'val'.
        index: Index of the image in its split, from 0.

    Returns:
        BGR image of shape (H, W, 3), and its label map of shape (H, W) with the ids of
        `SCENE_CLASSES` and 0 for things of no class.
    """
    rng = _image_rng(1, seed, split, index)
    scene = _Scene(rng, *_vary_size(rng, image_size))
    if index % 3 == 2:
        _draw_room(scene)
    else:
        _draw_street(scene)
    # Something of no class in every image: ADE20K's maps have such pixels, and losses and
    # metrics must leave them out.
    scene.blob(0, rng.uniform(0.1, 0.9), rng.uniform(0.75, 0.95), rng.uniform(0.04, 0.1),
               rng.uniform(0.04, 0.08), roughness=0.15)
    lit = scene.canvas * rng.uniform(0.85, 1.1)
    return _finish(rng, lit), scene.labels


def _draw_street(scene: _Scene) -> None:
    rng = scene.rng
    horizon = rng.uniform(0.42, 0.62)
    scene.box(3, -0.1, -0.1, 1.1, 1.1)
    left = rng.uniform(-0.1, 0.3)
    for _ in range(rng.integers(1, 4)):
        right = left + rng.uniform(0.18, 0.35)
        scene.box(2, left, horizon - rng.uniform(0.15, 0.38), right, horizon + 0.1)
        left = right + rng.uniform(0, 0.2)
    hills = np.linspace(-0.1, 1.1, 30)
    edge = horizon + 0.02 * np.sin(hills * rng.uniform(3, 9) + rng.uniform(0, 6))
    ground = [*zip(hills, edge, strict=True), (1.1, 1.1), (-0.1, 1.1)]
    scene.paint(10, ground)
    far, near = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)
    has_road = rng.random() < 0.7
    if has_road:
        scene.paint(7, [(far - 0.05, horizon + 0.03), (far + 0.05, horizon + 0.03),
                        (near + 0.4, 1.1), (near - 0.4, 1.1)])
    for _ in range(rng.integers(0, 4)):
        x, foot = rng.uniform(0, 1), horizon + rng.uniform(0.03, 0.2)
        tall = rng.uniform(0.25, 0.42)
        scene.box(5, x - 0.015, foot - tall * 0.6, x + 0.015, foot)
        scene.blob(5, x, foot - tall * 0.7, tall * rng.uniform(0.3, 0.45), tall * 0.4, 0.1)
    if has_road or rng.random() < 0.4:
        _draw_car(scene, far + (near - far) * 0.5, horizon + rng.uniform(0.18, 0.38))
    for _ in range(rng.integers(0, 3)):
        _draw_person(scene, rng.uniform(0.08, 0.92), horizon + rng.uniform(0.2, 0.42))


def _draw_room(scene: _Scene) -> None:
    rng = scene.rng
    edge = rng.uniform(0.55, 0.72)
    slope = rng.uniform(-0.08, 0.08)
    scene.box(1, -0.1, -0.1, 1.1, 1.1)
    scene.paint(4, [(-0.1, edge), (0.5, edge + slope), (1.1, edge), (1.1, 1.1), (-0.1, 1.1)])
    door_first = rng.random() < 0.5
    for number in range(2):
        left = 0.08 + 0.48 * number + rng.uniform(0, 0.1)
        if (number == 0) == door_first:
            scene.box(15, left, edge - rng.uniform(0.4, 0.5), left + rng.uniform(0.16, 0.22),
                      edge + slope / 2)
        else:
            top, bottom = rng.uniform(0.08, 0.16), edge - rng.uniform(0.15, 0.22)
            scene.box(9, left, top, left + rng.uniform(0.2, 0.32), bottom)
    for _ in range(rng.integers(0, 3)):
        _draw_person(scene, rng.uniform(0.1, 0.9), edge + rng.uniform(0.1, 0.28))


def _draw_car(scene: _Scene, x: float, foot: float) -> None:
    rng = scene.rng
    long = rng.uniform(0.13, 0.2)  # half the length
    hue = rng.choice([0.0, 0.67, 0.14])
    top = foot - long * 0.9
    body = [(-1, 0), (-1, 0.45), (-0.6, 0.5), (-0.4, 1), (0.4, 1), (0.65, 0.5), (1, 0.4), (1, 0)]
    scene.paint(21, [(x + long * u, foot + (top - foot) * v) for u, v in body], float(hue))
    for side in (-0.55, 0.55):
        wheel = long * 0.2
        scene.blob(21, x + side * long, foot, wheel, wheel, hue=float(hue))


def _draw_person(scene: _Scene, x: float, foot: float) -> None:
    rng = scene.rng
    tall = rng.uniform(0.25, 0.38)
    broad = tall * rng.uniform(0.13, 0.17)
    clothes = float(rng.choice([0.07, 0.78, 0.5]))
    scene.paint(13, [(x - broad, foot - tall * 0.75), (x + broad, foot - tall * 0.75),
                     (x + broad * 0.7, foot), (x - broad * 0.7, foot)], clothes)
    scene.blob(13, x, foot - tall * 0.86, tall * 0.1, tall * 0.12)
