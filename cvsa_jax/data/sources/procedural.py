"""A procedural fine-grained set: birds of one body plan whose classes differ only in small local attributes.

Everything else is random and says nothing of the class: plumage colour, pose, scale, side, light, and a cluttered
background that uses the same colours as the attributes. Masks are exact. Each image is a pure function of
(seed, split, class, number), made when it is first read.

For studies, classes can also be told by their whole bodies (`bodies`), the train split's backgrounds can tell the class
(`background`), and the objects' `scale` can be chosen.
"""

import dataclasses
import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from cvsa_jax.data.sources.source import Source, fingerprint
from cvsa_jax.runtime import checks

SUPERSAMPLING = 3
# Raised when the drawing changes, so that stores and runs of the old pictures are not taken for new ones.
DRAWING_VERSION = 1

PALETTE = {"red": (206, 40, 36), "yellow": (240, 205, 40), "blue": (44, 84, 200), "white": (242, 242, 238)}
COLOURS = tuple(PALETTE)
# The attributes in which classes differ, and their values.
ATTRIBUTES = {
    "crown": COLOURS,
    "breast": COLOURS,
    "wing_bars": (0, 1, 3),
    "bar_colour": ("yellow", "white"),
    "tail_tip": COLOURS,
    "beak": ("short", "long"),
}
# Any two classes differ in at least this many attributes.
MIN_DIFFERENCES = 2
BODIES = ("same", "different")
BACKGROUNDS = ("plain", "telling")


@dataclasses.dataclass(frozen=True)
class Spec:
    """`config.data.procedural`; counts are per class. What has a value here came later: the value is what was before.

    Attributes:
        size: side of the square images in pixels.
        scale: range of half a bird's length over the image's side; the bird covers about 2.6 · scale² of the image.
        bodies: classes have the `same` body and differ in its attributes, or have `different` bodies and nothing else.
        background: `plain` ones say nothing of the class; `telling` ones have a colour that in the train split is the
            class's own, and in the test split that of any class.
    """

    seed: int
    classes: int
    train_per_class: int
    test_per_class: int
    size: int
    scale: tuple[float, ...] = (0.19, 0.29)
    bodies: str = "same"
    background: str = "plain"

    def __post_init__(self):
        checks.area("config.data.procedural.scale", self.scale)
        checks.choice("config.data.procedural.bodies", self.bodies, BODIES)
        checks.choice("config.data.procedural.background", self.background, BACKGROUNDS)


@functools.lru_cache(maxsize=4)
def load(spec: Spec) -> Source:
    """The set of a `Spec`; images are drawn on first use and kept encoded."""
    same = spec.bodies == "same"
    codes = class_codes(spec.classes, spec.seed) if same else class_bodies(spec.classes, spec.seed)
    themes = np.random.default_rng([spec.seed, 0xBAC6]).uniform(30, 225, (spec.classes, 3))
    keys, names = [], []
    for split, count in enumerate((spec.train_per_class, spec.test_per_class)):
        for label in range(spec.classes):
            for number in range(count):
                keys.append((split, label, number))
                names.append(f"{('train', 'test')[split]}/class_{label:02d}/{number:04d}.png")
    splits = np.array([k[0] for k in keys])

    @functools.cache
    def example(i: int) -> tuple[bytes, np.ndarray]:
        split, label, number = keys[i]
        rng = np.random.default_rng([spec.seed, split, label, number])
        theme = None
        if spec.background == "telling":
            theme = themes[label if split == 0 else rng.integers(spec.classes)]
        image, mask = draw(draw_bird if same else draw_body, codes[label], rng, spec, theme)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), mask

    return Source(
        name="procedural",
        names=tuple(names),
        labels=np.array([k[1] for k in keys], np.int32),
        classes=tuple(f"class_{label:02d}" for label in range(spec.classes)),
        splits={"train": np.flatnonzero(splits == 0), "test": np.flatnonzero(splits == 1)},
        read=lambda i: example(int(i))[0],
        mask=lambda i: example(int(i))[1],
        identify=lambda kind: fingerprint([_told(spec)], [len(names)]),
    )


def _told(spec: Spec) -> str:
    """What the set is recognised by; of one without the choices that came later, as it was before them."""
    values = [(field, getattr(spec, field.name)) for field in dataclasses.fields(spec)]
    told = ", ".join(f"{field.name}={value!r}" for field, value in values if value != field.default)
    return f"Spec({told}) v{DRAWING_VERSION}"


def class_codes(classes: int, seed: int) -> list[dict]:
    """Attribute values of each class, drawn so that any two differ in at least MIN_DIFFERENCES visible attributes."""
    rng = np.random.default_rng([seed, 0xC0DE])
    codes: list[dict] = []
    for _ in range(100_000):
        code = {name: values[rng.integers(len(values))] for name, values in ATTRIBUTES.items()}
        if all(_differences(code, other) >= MIN_DIFFERENCES for other in codes):
            codes.append(code)
            if len(codes) == classes:
                return codes
    raise ValueError(f"no {classes} classes that differ in {MIN_DIFFERENCES} attributes were found")


def _differences(a: dict, b: dict) -> int:
    # Without bars their colour cannot be seen.
    unseen = {"bar_colour"} if a["wing_bars"] == 0 or b["wing_bars"] == 0 else set()
    return sum(a[name] != b[name] for name in a.keys() - unseen)


def class_bodies(classes: int, seed: int) -> list[dict]:
    """Proportions of each class's body, drawn at random."""
    rng = np.random.default_rng([seed, 0xB0D1])
    return [
        {
            "body": rng.uniform((0.5, 0.3), (0.95, 0.65)),
            "head": rng.uniform((0.4, -0.65), (1.1, -0.2)),
            "skull": rng.uniform((0.18, 0.18), (0.45, 0.4)),
            "ears": int(rng.integers(3)),
            "legs": int(rng.integers(4)),
            "leg": rng.uniform((0.05, 0.6), (0.2, 1.05)),
            "tail": rng.uniform((-1.5, -0.7), (-0.8, 0.6)),
            "tail_width": float(rng.uniform(0.05, 0.3)),
        }
        for _ in range(classes)
    ]


def draw(
    draw_object: Callable, code: dict, rng: np.random.Generator, spec: Spec, theme: np.ndarray | None
) -> tuple[Image.Image, np.ndarray]:
    """One image and its (size, size) uint8 mask, 255 on the object. `theme`: (3,) the background's colour, if it has
    one of its own."""
    size, big = spec.size, spec.size * SUPERSAMPLING
    canvas = _background(rng, big, theme)
    mask = Image.new("L", (big, big), 0)
    pen = _Pen(ImageDraw.Draw(canvas), ImageDraw.Draw(mask), _pose(rng, big, spec.scale))

    plumage = rng.uniform(85, 135) * rng.uniform(0.93, 1.07, 3)

    def shade(factor: float) -> tuple[int, ...]:
        return tuple(int(v) for v in np.clip(plumage * factor, 0, 255))

    draw_object(pen, code, shade)
    image = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32)
    image = image * rng.uniform(0.8, 1.15) + rng.normal(0, 5, image.shape)
    covered = np.asarray(mask.resize((size, size), Image.Resampling.BOX)) > 127
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), np.where(covered, 255, 0).astype(np.uint8)


def draw_bird(bird: "_Pen", code: dict, shade: Callable) -> None:
    """A bird with the attributes of `class_codes`."""
    for x in (-0.15, 0.2):
        bird.polygon([(x, 0.5), (x + 0.09, 0.5), (x + 0.12, 1.0), (x + 0.03, 1.0)], (60, 50, 40))
    bird.polygon([(-0.5, -0.3), (-1.1, -0.25), (-1.1, 0.3), (-0.5, 0.3)], shade(0.8))
    bird.polygon([(-0.95, -0.26), (-1.4, -0.25), (-1.4, 0.33), (-0.95, 0.3)], PALETTE[code["tail_tip"]])
    bird.ellipse((0.0, 0.0), (0.85, 0.62), 0.0, shade(1.0))
    bird.ellipse((0.42, 0.2), (0.42, 0.36), -0.5, PALETTE[code["breast"]])
    bird.ellipse((0.68, -0.52), (0.45, 0.42), 0.0, shade(1.0))
    bird.ellipse((0.62, -0.74), (0.4, 0.24), -0.1, PALETTE[code["crown"]])
    bird.polygon(_BEAKS[code["beak"]], (70, 62, 50))
    bird.ellipse((0.84, -0.52), (0.08, 0.08), 0.0, (10, 10, 10))
    bird.ellipse((-0.25, -0.05), (0.56, 0.36), 0.15, shade(0.65))
    for bar in range(code["wing_bars"]):
        x = 0.06 - 0.3 * bar
        bird.polygon([(x, -0.32), (x + 0.16, -0.32), (x + 0.08, 0.24), (x - 0.08, 0.24)], PALETTE[code["bar_colour"]])


def draw_body(animal: "_Pen", code: dict, shade: Callable) -> None:
    """An animal with the proportions of `class_bodies`, in one colour."""
    (length, height), (x, y), (wide, high) = code["body"], code["head"], code["skull"]
    (leg, reach), (tail_x, tail_y) = code["leg"], code["tail"]
    for k in range(code["legs"] + 1):
        at = length * (1.4 * (k + 0.5) / (code["legs"] + 1) - 0.7)
        animal.polygon([(at - leg / 2, 0), (at + leg / 2, 0), (at + leg / 2, reach), (at - leg / 2, reach)], shade(0.7))
    width = code["tail_width"]
    animal.polygon([(-0.3, -width), (tail_x, tail_y - width), (tail_x, tail_y + width), (-0.3, width)], shade(0.8))
    animal.polygon([(0, -0.2), (x - 0.1, y), (x + 0.1, y), (0.5, 0.2)], shade(0.9))
    animal.ellipse((0.0, 0.0), (length, height), 0.0, shade(1.0))
    animal.ellipse((x, y), (wide, high), 0.0, shade(1.1))
    for side in (-0.6, 0.4)[: code["ears"]]:
        at = x + side * wide
        animal.polygon([(at, y - 0.6 * high), (at + 0.12, y - high - 0.25), (at + 0.24, y - 0.6 * high)], shade(0.75))
    animal.ellipse((x + 0.35 * wide, y), (0.07, 0.07), 0.0, (10, 10, 10))


_BEAKS = {"short": [(1.05, -0.62), (1.35, -0.48), (1.05, -0.36)], "long": [(1.05, -0.6), (1.75, -0.44), (1.05, -0.36)]}


class _Pen:
    """Draws in the bird's own coordinates (body length 2, y down) on the picture and on the mask alike."""

    def __init__(self, picture: ImageDraw.ImageDraw, mask: ImageDraw.ImageDraw, pose):
        self.picture, self.mask, self.pose = picture, mask, pose

    def polygon(self, points, colour) -> None:
        placed = [tuple(p) for p in self.pose(np.asarray(points, float))]
        self.picture.polygon(placed, fill=colour)
        self.mask.polygon(placed, fill=255)

    def ellipse(self, centre, radii, angle, colour) -> None:
        self.polygon(_ellipse(centre, radii, angle), colour)


def _pose(rng: np.random.Generator, big: int, scales: tuple[float, ...]):
    """Random side, tilt, scale and place; the whole bird stays inside the image."""
    angle, side = rng.uniform(-0.5, 0.5), rng.choice([-1, 1])
    scale = rng.uniform(*scales) * big
    stretch = np.array([1.0, rng.uniform(0.88, 1.12)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = np.array([1.6, 1.05])  # half extent of the bird, in its own units
    half = np.abs(turn) @ (reach * stretch) * scale
    low, high = np.minimum(half, big / 2), np.maximum(big - half, big / 2)
    centre = rng.uniform(low, high)
    return lambda points: (points * stretch * [side, 1]) @ turn.T * scale + centre


def _ellipse(centre, radii, angle) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([radii[0] * np.cos(t), radii[1] * np.sin(t)], 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T + centre


def _background(rng: np.random.Generator, big: int, theme: np.ndarray | None) -> Image.Image:
    """A colour gradient, around the `theme` if there is one, under random ellipses, rectangles and stripes, a third of
    them in the attributes' colours."""
    corners = rng.uniform(30, 225, (2, 2, 3))
    if theme is not None:
        corners = np.clip(theme + 0.15 * (corners - 128), 0, 255)
    corners = corners.astype(np.uint8)
    canvas = Image.fromarray(corners).resize((big, big), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(12, 24)):
        if rng.random() < 1 / 3:
            colour = PALETTE[COLOURS[rng.integers(len(COLOURS))]]
        else:
            colour = tuple(int(v) for v in rng.uniform(20, 235, 3))
        centre, angle = rng.uniform(0, big, 2), rng.uniform(0, np.pi)
        kind = rng.integers(3)
        radii = rng.uniform(0.02, 0.13, 2) * big if kind < 2 else np.array([0.3, 0.012]) * rng.uniform(0.5, 1.5) * big
        points = _ellipse(centre, radii, angle)
        pen.polygon([tuple(p) for p in (points if kind == 0 else points[::6])], fill=colour)
    return canvas
