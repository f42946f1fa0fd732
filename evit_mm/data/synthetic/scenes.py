"""Images for semantic segmentation: plain scenes, outdoors and indoors."""

from typing import Final

import numpy as np
import numpy.typing as npt

from .canvas import (
    ByteArray,
    FloatArray,
    blend,
    clouds,
    colour,
    coverage_of,
    finish,
    image_rng,
    ramp,
    vary_size,
)

__all__ = ['SCENE_CLASSES', 'draw_scene']

SCENE_CLASSES: Final[dict[int, str]] = {
    1: 'wall', 2: 'building', 3: 'sky', 4: 'floor', 5: 'tree', 7: 'road', 9: 'windowpane',
    10: 'grass', 13: 'person', 15: 'door', 21: 'car',
}
"""Names of ADE20K classes by their values in the label maps, which count from 1; 0 is no class."""

_LABELS: Final = {'unlabelled': 0, **{name: label for label, name in SCENE_CLASSES.items()}}

# For each class: hue, saturation, value, spread of the value between images, and texture. They
# differ enough for a small network to tell most classes apart by colour and grain.
_STYLES: Final = {
    'unlabelled': (0.86, 0.75, 0.75, 0.15, 'blotches'),
    'wall': (0.11, 0.18, 0.82, 0.08, 'plain'),
    'building': (0.03, 0.45, 0.55, 0.12, 'bricks'),
    'sky': (0.57, 0.45, 0.88, 0.08, 'clouds'),
    'floor': (0.08, 0.60, 0.45, 0.08, 'planks'),
    'tree': (0.34, 0.65, 0.33, 0.08, 'blotches'),
    'road': (0.60, 0.05, 0.38, 0.08, 'grain'),
    'windowpane': (0.53, 0.25, 0.95, 0.04, 'panes'),
    'grass': (0.25, 0.60, 0.62, 0.10, 'grain'),
    'person': (0.07, 0.50, 0.85, 0.10, 'plain'),
    'door': (0.06, 0.80, 0.28, 0.06, 'plain'),
    'car': (0.00, 0.90, 0.75, 0.15, 'plain'),
}


class _Scene:
    """An image and its label map, painted region by region, later ones over earlier ones."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height, width
        self.labels = np.zeros((height, width), dtype=np.uint8)
        self.canvas = np.zeros((height, width, 3), dtype=np.float32)

    def paint(self, thing: str, corners: npt.ArrayLike, hue: float | None = None) -> None:
        """Paint a polygon (N, 2), whose x and y are shares of the width and height."""
        scale = np.array([self.width, self.height], np.float32)
        coverage = coverage_of(np.asarray(corners, np.float32) * scale, self.height, self.width)
        blend(self.canvas, coverage, self._texture(thing, hue))
        self.labels[coverage >= 0.5] = _LABELS[thing]

    def box(self, thing: str, left: float, top: float, right: float, bottom: float) -> None:
        """Paint an upright rectangle."""
        self.paint(thing, [(left, top), (right, top), (right, bottom), (left, bottom)])

    def blob(self, thing: str, x: float, y: float, across: float, down: float,
             roughness: float = 0.0, hue: float | None = None) -> None:
        """Paint an ellipse of the given radii, with a bumpy edge if `roughness` > 0."""
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radii = 1 + roughness * np.sin(angles * self.rng.integers(5, 9) + self.rng.uniform(0, 6))
        self.paint(thing, np.stack([x + across * radii * np.cos(angles),
                                    y + down * radii * np.sin(angles)], axis=1), hue)

    def _texture(self, thing: str, hue: float | None) -> FloatArray:
        rng, height, width = self.rng, self.height, self.width
        own_hue, saturation, value, spread, kind = _STYLES[thing]
        base = colour((own_hue if hue is None else hue) + rng.uniform(-0.02, 0.02),
                      saturation * rng.uniform(0.85, 1.1) if saturation < 0.9 else saturation,
                      min(1.0, value + rng.uniform(-spread, spread)))
        rows, columns = np.mgrid[0:height, 0:width]
        shade = np.ones((height, width), dtype=np.float32)
        period = max(4, min(height, width) // int(rng.integers(14, 20)))
        if kind == 'clouds':
            white = np.clip(0.35 * clouds(rng, height, width, 6), 0, 0.8)[..., None]
            return (base * (1 - white) + 245 * white).astype(np.float32)
        if kind == 'bricks':
            course = rows // period
            joint = (rows % period == 0) | ((columns + course % 2 * period) % (2 * period) == 0)
            shade[joint] = 1.35
        elif kind == 'planks':
            shade += 0.12 * np.sin(columns // (2 * period) * 2.4).astype(np.float32)
            shade[columns % (2 * period) == 0] = 0.6
        elif kind == 'panes':
            shade += 0.1 * ramp(height, width, 0.8)
        elif kind == 'grain':
            shade += 0.12 * rng.standard_normal((height, width), dtype=np.float32)
        elif kind == 'blotches':
            shade += 0.22 * clouds(rng, height, width, 32)
        shade += 0.03 * clouds(rng, height, width, 9)
        return base * shade[..., None]


def draw_scene(
    image_size: tuple[int, int], seed: int, split: str, index: int
) -> tuple[ByteArray, ByteArray]:
    """Draw one image of the segmentation dataset; two of three are outdoor scenes.

    Args:
        image_size: (height, width) in px around which the size varies.
        seed: The dataset's seed.
        split: ``'train'`` or ``'val'``.
        index: Index of the image in its split, from 0.

    Returns:
        BGR image of shape (H, W, 3), and its label map of shape (H, W) with the keys of
        `SCENE_CLASSES`, and 0 for pixels of no class.
    """
    rng = image_rng(1, seed, split, index)
    scene = _Scene(rng, *vary_size(rng, image_size))
    if index % 3 == 2:
        _draw_room(scene)
    else:
        _draw_street(scene)
    # Every image has pixels of no class, as ADE20K's do: losses and metrics must ignore them.
    scene.blob('unlabelled', rng.uniform(0.1, 0.9), rng.uniform(0.75, 0.95),
               rng.uniform(0.04, 0.1), rng.uniform(0.04, 0.08), roughness=0.15)
    lit = scene.canvas * rng.uniform(0.85, 1.1)
    return finish(rng, lit), scene.labels


def _draw_street(scene: _Scene) -> None:
    rng = scene.rng
    horizon = rng.uniform(0.42, 0.62)
    scene.box('sky', -0.1, -0.1, 1.1, 1.1)
    left = rng.uniform(-0.1, 0.3)
    for _ in range(rng.integers(1, 4)):
        right = left + rng.uniform(0.18, 0.35)
        scene.box('building', left, horizon - rng.uniform(0.15, 0.38), right, horizon + 0.1)
        left = right + rng.uniform(0, 0.2)
    hills = np.linspace(-0.1, 1.1, 30)
    edge = horizon + 0.02 * np.sin(hills * rng.uniform(3, 9) + rng.uniform(0, 6))
    scene.paint('grass', [*zip(hills, edge, strict=True), (1.1, 1.1), (-0.1, 1.1)])
    far, near = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)
    has_road = rng.random() < 0.7
    if has_road:
        scene.paint('road', [(far - 0.05, horizon + 0.03), (far + 0.05, horizon + 0.03),
                             (near + 0.4, 1.1), (near - 0.4, 1.1)])
    for _ in range(rng.integers(0, 4)):
        x, foot = rng.uniform(0, 1), horizon + rng.uniform(0.03, 0.2)
        tall = rng.uniform(0.25, 0.42)
        scene.box('tree', x - 0.015, foot - tall * 0.6, x + 0.015, foot)
        scene.blob('tree', x, foot - tall * 0.7, tall * rng.uniform(0.3, 0.45), tall * 0.4, 0.1)
    if has_road or rng.random() < 0.4:
        _draw_car(scene, far + (near - far) * 0.5, horizon + rng.uniform(0.18, 0.38))
    for _ in range(rng.integers(0, 3)):
        _draw_person(scene, rng.uniform(0.08, 0.92), horizon + rng.uniform(0.2, 0.42))


def _draw_room(scene: _Scene) -> None:
    rng = scene.rng
    edge = rng.uniform(0.55, 0.72)
    slope = rng.uniform(-0.08, 0.08)
    scene.box('wall', -0.1, -0.1, 1.1, 1.1)
    scene.paint('floor', [(-0.1, edge), (0.5, edge + slope), (1.1, edge), (1.1, 1.1), (-0.1, 1.1)])
    door_first = rng.random() < 0.5
    for number in range(2):
        left = 0.08 + 0.48 * number + rng.uniform(0, 0.1)
        if (number == 0) == door_first:
            scene.box('door', left, edge - rng.uniform(0.4, 0.5), left + rng.uniform(0.16, 0.22),
                      edge + slope / 2)
        else:
            top, bottom = rng.uniform(0.08, 0.16), edge - rng.uniform(0.15, 0.22)
            scene.box('windowpane', left, top, left + rng.uniform(0.2, 0.32), bottom)
    for _ in range(rng.integers(0, 3)):
        _draw_person(scene, rng.uniform(0.1, 0.9), edge + rng.uniform(0.1, 0.28))


def _draw_car(scene: _Scene, x: float, foot: float) -> None:
    rng = scene.rng
    long = rng.uniform(0.13, 0.2)  # half the length
    hue = float(rng.choice([0.0, 0.67, 0.14]))
    top = foot - long * 0.9
    body = [(-1, 0), (-1, 0.45), (-0.6, 0.5), (-0.4, 1), (0.4, 1), (0.65, 0.5), (1, 0.4), (1, 0)]
    scene.paint('car', [(x + long * u, foot + (top - foot) * v) for u, v in body], hue)
    wheel = long * 0.2
    for side in (-0.55, 0.55):
        scene.blob('car', x + side * long, foot, wheel, wheel, hue=hue)


def _draw_person(scene: _Scene, x: float, foot: float) -> None:
    rng = scene.rng
    tall = rng.uniform(0.25, 0.38)
    broad = tall * rng.uniform(0.13, 0.17)
    clothes = float(rng.choice([0.07, 0.78, 0.5]))
    scene.paint('person', [(x - broad, foot - tall * 0.75), (x + broad, foot - tall * 0.75),
                           (x + broad * 0.7, foot), (x - broad * 0.7, foot)], clothes)
    scene.blob('person', x, foot - tall * 0.86, tall * 0.1, tall * 0.12)
