"""Procedural scenes of many moving objects, rendered at any time.

Positions are pixels (x to the right, y down, pixel centres at whole numbers), time is counted in frames.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training import photographs
from training.shapes import signed_distance
from training.textures import Array, Colour, Texture

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Motion:
    """Uniform movement: ``shift`` in pixels a frame, ``spin`` in radians a frame, ``zoom`` a factor a frame."""

    shift: tuple[float, float] = (0.0, 0.0)
    spin: float = 0.0
    zoom: float = 1.0


@dataclass(frozen=True, slots=True)
class Sprite:
    """One textured object; ``radius`` in pixels."""

    shape: str
    texture: Texture
    centre: tuple[float, float]
    radius: float
    angle: float
    motion: Motion

    def pose(self, time: float) -> Matrix:
        """3x3 matrix from the object's own plane (in pixels, origin at its centre) to the world."""
        x, y = (c + time * v for c, v in zip(self.centre, self.motion.shift, strict=True))
        return affine(x, y, self.angle + time * self.motion.spin, self.motion.zoom**time)


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph as background: ``origin`` is its pixel under the world's origin, ``tint`` colours it."""

    name: str
    long_side: int
    origin: tuple[float, float]
    tint: Colour = (1.0, 1.0, 1.0)

    def __call__(self, x: Array, y: Array) -> Array:
        picture = photographs.photograph(self.name, self.long_side)
        colours = photographs.sample(picture, x + self.origin[0], y + self.origin[1])
        return colours * np.asarray(self.tint, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """A picture uint8 [H, W, 3] as background: its first pixel lies under the world's origin."""

    pixels: npt.NDArray[np.uint8]
    tint: Colour = (1.0, 1.0, 1.0)

    def __call__(self, x: Array, y: Array) -> Array:
        picture = (self.pixels / 255).astype(np.float32)
        return photographs.sample(picture, x, y) * np.asarray(self.tint, np.float32)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything visible: the later a sprite, the nearer it is."""

    height: int
    width: int
    background: Texture | Photo | Still
    sprites: tuple[Sprite, ...]
    camera: Motion = Motion()

    def camera_pose(self, time: float) -> Matrix:
        """3x3 matrix from the world to the picture; the camera turns and zooms about the middle."""
        x, y = (self.width - 1) / 2, (self.height - 1) / 2
        turn = affine(x, y, time * self.camera.spin, self.camera.zoom**time)
        return turn @ affine(-x - time * self.camera.shift[0], -y - time * self.camera.shift[1])

    def pose(self, label: int, time: float) -> Matrix:
        """From the surface of object ``label`` (0 is the background, k is sprite k-1) to the picture."""
        camera = self.camera_pose(time)
        return camera if label == 0 else camera @ self.sprites[label - 1].pose(time)


@dataclass(frozen=True, slots=True)
class Frame:
    """``image`` float32 [H, W, 3] in [0, 1]; ``labels`` int16 [H, W]: 0 background, k sprite k-1."""

    image: Array
    labels: npt.NDArray[np.int16]


def affine(x: float, y: float, angle: float = 0.0, scale: float = 1.0) -> Matrix:
    """Scale, turn, then move to (x, y)."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1]], np.float64)


def render(scene: Scene, time: float = 0.0) -> Frame:
    """The picture at ``time`` and which object each pixel shows."""
    x, y = _surface_points(scene.pose(0, time), 0, 0, scene.width, scene.height)
    image = np.array(scene.background(x, y), np.float32)
    labels = np.zeros((scene.height, scene.width), np.int16)
    for label, sprite in enumerate(scene.sprites, start=1):
        _draw(image, labels, sprite, label, scene.pose(label, time))
    return Frame(np.clip(image, 0, 1), labels)


def _draw(image: Array, labels: npt.NDArray[np.int16], sprite: Sprite, label: int, pose: Matrix) -> None:
    """Blends one sprite into ``image``, within its bounding box only."""
    scale = float(np.hypot(pose[0, 0], pose[1, 0]))
    reach = sprite.radius * scale + 2
    left, right = _clip(pose[0, 2], reach, image.shape[1])
    top, bottom = _clip(pose[1, 2], reach, image.shape[0])
    if left >= right or top >= bottom:
        return
    x, y = _surface_points(pose, left, top, right, bottom)
    distance = signed_distance(sprite.shape, x / sprite.radius, y / sprite.radius)
    cover = np.clip(0.5 - distance * sprite.radius * scale, 0, 1)[..., None]
    box = (slice(top, bottom), slice(left, right))
    image[box] = cover * sprite.texture(x, y) + (1 - cover) * image[box]
    labels[box][cover[..., 0] > 0.5] = label


def _clip(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(int(centre - reach), 0), min(int(centre + reach) + 2, size)


def _surface_points(pose: Matrix, left: int, top: int, right: int, bottom: int) -> tuple[Array, Array]:
    """Where the pixels of a box lie on a surface; two arrays [bottom - top, right - left]."""
    m = np.linalg.inv(pose)
    px, py = np.arange(left, right)[None, :], np.arange(top, bottom)[:, None]
    x = m[0, 0] * px + m[0, 1] * py + m[0, 2]
    y = m[1, 0] * px + m[1, 1] * py + m[1, 2]
    return x.astype(np.float32), y.astype(np.float32)
