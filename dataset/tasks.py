"""Image tasks made on the fly, in the manner of VTAB: each labels one factor of a rendered scene.

A scene is a textured background with one or several elongated objects. Every factor is drawn
independently, so a model that solves a task has learned that factor and not a by-product. The
handwritten digits of scikit-learn are the one task on real images.

Images are float32, shape (n, 3, 24, 24), roughly zero mean and unit variance.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

IMAGE_SIZE = 24

# Number of classes of each factor. A factor's value is its class index; rendering adds jitter inside the class.
FACTORS = {
    "row": 3,
    "column": 3,
    "orientation": 4,
    "scale": 4,
    "shape": 4,
    "hue": 6,
    "tone": 4,
    "texture": 3,
    "frequency": 4,
    "contrast": 3,
    "count": 4,
}

# The tasks that a child can be fine-tuned on. "location" is row and column at once, as in dSprites.
TASKS = {name: classes for name, classes in FACTORS.items() if name not in ("row", "column")}
TASKS |= {"location": 9, "digits": 10}


@dataclass(frozen=True)
class Batch:
    """Images (n, 3, 24, 24) float32 and one int64 label array (n,) per factor that was drawn."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


def _texture(kind: int, u: np.ndarray, v: np.ndarray, frequency: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """A periodic pattern in [-1.4, 1.4]: waves or a soft checkerboard."""
    waves = np.sin(frequency * u + phase)
    return waves if kind == 0 else 1.4 * waves * np.sin(frequency * v + phase)


def _speckle(frequency: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random squares of -1 or 1, the finer the higher the class of frequency: 6, 4, 3 or 2 pixels wide."""
    texture = np.empty((len(frequency), IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for value, width in enumerate((6, 4, 3, 2)):
        of = frequency == value
        cells = rng.choice(np.float32([-1, 1]), (int(of.sum()), IMAGE_SIZE // width, IMAGE_SIZE // width))
        texture[of] = cells.repeat(width, axis=1).repeat(width, axis=2)
    return texture


def _outline(kind: int, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Signed distance-like function, negative inside: an ellipse, a box, a frame or a dumbbell."""
    if kind == 0:
        return p * p + q * q - 1
    if kind == 3:
        lobe = np.abs(p) - 0.8
        return lobe * lobe + 0.36 * q * q - 0.25
    box = np.maximum(np.abs(p), np.abs(q))
    return box - 0.9 if kind == 1 else np.abs(box - 0.85) - 0.3


def render(factors: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Render one scene for each row of the factor arrays; unseen nuisances are drawn from `rng`."""
    n = len(factors["shape"])
    axis = (np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5) / IMAGE_SIZE
    y, x = np.meshgrid(axis, axis, indexing="ij")

    def column(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32)[:, None, None]

    def jitter(width: float) -> np.ndarray:
        return column(rng.uniform(-width, width, n))

    # Background: one of three textures with a class of spatial frequency, at a random angle and phase.
    angle, phase = column(rng.uniform(0, np.pi, n)), column(rng.uniform(0, 2 * np.pi, n))
    frequency = 2 * np.pi * (1.5 + 1.5 * column(factors["frequency"]) + jitter(0.3))
    u = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    v = (y - 0.5) * np.cos(angle) - (x - 0.5) * np.sin(angle)
    texture = np.empty((n, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for kind in (0, 1):
        of = factors["texture"] == kind
        texture[of] = _texture(kind, u[of], v[of], frequency[of], phase[of])
    of = factors["texture"] == 2
    texture[of] = _speckle(factors["frequency"][of], rng)
    contrast = 0.2 * (1 + column(factors["contrast"])) + jitter(0.04)
    tone = -0.9 + 0.6 * column(factors["tone"]) + jitter(0.12)
    image = np.repeat((tone + contrast * texture)[:, None], 3, axis=1)

    # Objects: all copies in a scene share shape, scale, orientation and hue.
    scale = 0.09 + 0.035 * column(factors["scale"]) + jitter(0.008)
    scale *= np.where(column(factors["count"]) > 0, np.float32(0.75), np.float32(1))
    hue = (column(factors["hue"]) + jitter(0.3)) * (2 * np.pi / FACTORS["hue"])
    colour = 1.8 * np.stack([np.cos(hue - k * 2 * np.pi / 3) for k in range(3)], axis=1)
    theta = (column(factors["orientation"]) + jitter(0.3)) * (np.pi / FACTORS["orientation"])
    # Further objects of a scene sit in other cells of a 3 x 3 grid, so that they can be counted.
    cells = rng.permuted(np.tile(np.arange(9), (n, 1)), axis=1)
    first = factors["row"] * 3 + factors["column"]
    cells[np.arange(n), np.argmax(cells == first[:, None], axis=1)] = cells[:, 0]
    cells[:, 0] = first
    for k in range(int(factors["count"].max()) + 1):
        cy = (column(cells[:, k] // 3) + 0.5) / 3 + jitter(0.05)
        cx = (column(cells[:, k] % 3) + 0.5) / 3 + jitter(0.05)
        for kind in range(FACTORS["shape"]):
            of = (factors["shape"] == kind) & (factors["count"] >= k)
            dx, dy, turn = x - cx[of], y - cy[of], theta[of]
            p = (dx * np.cos(turn) + dy * np.sin(turn)) / scale[of]
            q = (dy * np.cos(turn) - dx * np.sin(turn)) / (0.45 * scale[of])
            mask = 1 / (1 + np.exp(np.clip(6 * _outline(kind, p, q), -30, 30)))[:, None]
            image[of] += mask * (colour[of] - image[of])
    image += np.float32(0.08) * rng.standard_normal(image.shape, dtype=np.float32)
    return image


def scenes(n: int, rng: np.random.Generator, several_objects: bool = False) -> Batch:
    """Draw n scenes with independent factors; one object each unless `several_objects`."""
    factors = {name: rng.integers(0, classes, n) for name, classes in FACTORS.items()}
    if not several_objects:
        factors["count"] = np.zeros(n, dtype=np.int64)
    return Batch(render(factors, rng), factors)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32) / 16, data.target.astype(np.int64)


def _draw_digits(n: int, rng: np.random.Generator, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 8 x 8 digits, three times enlarged, tinted and shifted; every fifth one is held out."""
    pictures, targets = _digits()
    pool = np.flatnonzero((np.arange(len(targets)) % 5 == 0) == held_out)
    chosen = rng.choice(pool, n)
    big = pictures[chosen].repeat(3, axis=1).repeat(3, axis=2)
    shift = rng.integers(-2, 3, (n, 2))
    big = np.stack([np.roll(picture, tuple(move), axis=(0, 1)) for picture, move in zip(big, shift)])
    tint = rng.uniform(0.6, 1.4, (n, 3, 1, 1))
    image = (2.2 * big[:, None] - 0.9) * tint + rng.normal(0, 0.08, (n, 3, IMAGE_SIZE, IMAGE_SIZE))
    return image.astype(np.float32), targets[chosen]


def draw(task: str, n: int, rng: np.random.Generator, held_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw n labelled images of a task: (images, labels). `held_out` matters for the finite digits only."""
    if task == "digits":
        return _draw_digits(n, rng, held_out)
    batch = scenes(n, rng, several_objects=task == "count")
    if task == "location":
        return batch.images, batch.labels["row"] * 3 + batch.labels["column"]
    return batch.images, batch.labels[task]
