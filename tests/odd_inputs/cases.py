"""Odd inputs: what people have in the place of a clean set, each with what must come of it."""

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cvsa_jax.data.sources import Source

ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Case:
    """`build` writes a set into a folder; then it is loaded as `kind` and every image, mask and box is read. Either all
    of that fails with one line that matches `refused`, or `right` is true of the source and of its images, and what was
    printed matches `said`. `keys`: of the config that is checked before."""

    part: str
    name: str
    build: Callable[[Path], None]
    right: Callable[[Source, list[np.ndarray]], bool] | None = None
    refused: str = ""
    said: str = ""
    kind: str = "folder"
    keys: tuple[tuple[str, object], ...] = ()


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """Red above on the left, green beside it, blue below on the right."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    half, middle = height // 2, width // 2
    pixels[:half, :middle], pixels[:half, middle:], pixels[half:, middle:] = (240, 0, 0), (0, 240, 0), (0, 0, 240)
    return Image.fromarray(pixels)


def put(path: Path, image: Image.Image | None = None, kind: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture() if image is None else image).save(path, kind, **options)
    return path


def raw(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def of(kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    picture().save(file, kind, **options)
    return file.getvalue()


def like(expected: np.ndarray, tolerance: float = 40) -> Callable:
    """The one image is as expected, but for what compression does."""
    return lambda source, images: (
        len(images) == 1
        and images[0].shape == expected.shape
        and float(np.abs(images[0].astype(int) - expected).mean()) < tolerance
    )


def names(*expected: str) -> Callable:
    return lambda source, images: source.names == expected


def splits(**expected: list[str]) -> Callable:
    return lambda source, images: {s: [source.names[i] for i in rows] for s, rows in source.splits.items()} == expected


def left_out(count: int) -> Callable:
    return lambda source, images: sum(map(len, source.left_out.values())) == count


RED = np.asarray(picture())
CASES: list[Case] = []


def add(part: str, name: str, build, right=None, **more) -> None:
    CASES.append(Case(part, name, build, right, **more))


# Files of images.

for ending, kind in {
    ".jpg": "JPEG", ".JPG": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".bmp": "BMP",
    ".gif": "GIF", ".webp": "WEBP", ".tif": "TIFF", ".TIFF": "TIFF", ".ppm": "PPM",
}.items():  # fmt: skip
    add("formats", f"an image {ending}", lambda r, e=ending, k=kind: put(r / f"a{e}", None, k), like(RED))
for ending, kind in {".jpg": "PNG", ".tif": "JPEG"}.items():
    build = lambda r, e=ending, k=kind: raw(r / f"a{e}", of(k))  # noqa: E731
    add("formats", f"{kind} under the name of {ending}", build, like(RED))
for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
    grey = mode in ("1", "L", "LA", "I;16")

    def build(r: Path, mode: str = mode) -> None:
        image = picture().convert("L") if mode == "I;16" else picture().convert(mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        put(r / ("a.jpg" if mode == "CMYK" else "a.png"), image)

    expected = np.asarray(picture().convert("1" if mode == "1" else "L").convert("RGB")) if grey else RED
    add("colours", f"an image of mode {mode}", build, like(expected))
add(
    "colours",
    "a transparent image lies over white",
    lambda r: put(r / "a.png", Image.new("RGBA", (8, 8))),
    like(np.full((8, 8, 3), 255)),
)
for orientation in range(1, 9):
    for kind in ("JPEG", "PNG") if orientation == 6 else ("JPEG",):

        def build(r: Path, orientation: int = orientation, kind: str = kind) -> None:
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            put(r / f"a.{kind.lower()}", None, kind, exif=exif)

        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(of("PNG", exif=exif)))))
        add("EXIF", f"{kind} of orientation {orientation}", build, like(upright))
bomb = lambda r: put(r / "a.png", Image.new("1", (14_000, 14_000)))  # noqa: E731
for name, content, reason in (
    ("an empty file", b"", "the file is empty"),
    ("text", b"not an image\n" * 50, "not an image of a known format"),
    ("a page of HTML", b"<!doctype html><title>404</title>", "not an image of a known format"),
    ("a JPEG that is cut off", of("JPEG")[:400], r"(?i:truncated)|broken|known format"),
    ("a PNG that is cut off", of("PNG")[:70], r"truncated|broken|known format|EOF"),
    ("a header of a GIF alone", b"GIF89a", "known format"),
    ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "known format"),
):
    add("damage", name, lambda r, c=content: raw(r / "a.jpg", c), refused=rf"a\.jpg \(.*({reason})")
add("damage", "a decompression bomb", bomb, refused=r"a\.png \(.*decompression bomb")
add(
    "damage",
    "a good image and a bad one",
    lambda r: (put(r / "a.jpg"), raw(r / "b.jpg", b"x")),
    refused=r"^1 of 2 .*b\.jpg",
)
add("damage", "an image of 2 x 9,000 px", lambda r: put(r / "a.png", picture(9000, 2)), names("a.png"))

# Folders.

for train, val in (("train", "val"), ("Train", "Valid"), ("training", "validation"), ("TRAIN", "dev"), ("trn", "VAL")):
    add(
        "splits",
        f"folders {train} and {val}",
        lambda r, t=train, v=val: (put(r / t / "x/1.png"), put(r / v / "x/2.png")),
        splits(train=[f"{train}/x/1.png"], val=[f"{val}/x/2.png"]),
    )
for test in ("test", "Testing", "TST"):
    add(
        "splits",
        f"folders train and {test}",
        lambda r, t=test: (put(r / "train/x/1.png"), put(r / t / "x/2.png")),
        splits(train=["train/x/1.png"], test=[f"{test}/x/2.png"]),
    )
for stray in ("extra/x/3.png", "3.png", "old masks/3.png"):
    add(
        "splits",
        f"{stray} beside train and test",
        lambda r, s=stray: (put(r / "train/x/1.png"), put(r / "test/x/2.png"), put(r / s)),
        refused="beside the folders of the splits",
    )
add(
    "splits",
    "a class called train",
    lambda r: (put(r / "train/1.png"), put(r / "bus/2.png")),
    lambda source, images: source.classes == ("bus", "train"),
)
add(
    "splits",
    "loose images beside classes",
    lambda r: (put(r / "a/1.png"), put(r / "2.png")),
    refused="beside the class",
)
add("splits", "an empty folder", lambda r: None, refused="no image")
add("splits", "a folder that is not there", lambda r: r.rmdir(), refused="is not a folder")

for name in (
    ".hidden/2.png",
    "._1.png",
    "__MACOSX/1.png",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
    "$RECYCLE.BIN/2.png",
):
    add("other files", name, lambda r, n=name: (put(r / "1.png"), raw(r / n, of())), names("1.png"))
for name in ("notes.txt", "clip.mp4", "a.heic", "a.psd", "archive.zip"):
    add(
        "other files",
        name,
        lambda r, n=name: (put(r / "1.png"), raw(r / n, b"x")),
        left_out(1),
        said="left out: 1 files",
    )
for folder, files in {
    "run": ("config.json", "metrics.jsonl"),
    "store": ("identity.json", "names.txt"),
    "report": ("results.json",),
}.items():

    def build(r: Path, folder: str = folder, files: tuple[str, ...] = files) -> None:
        put(r / "1.png")
        put(r / folder / "picture.png")
        for name in files:
            raw(r / folder / name, b"{}")

    add("other files", f"a {folder} of ours inside", build, names("1.png"), said="folders of runs, stores and reports")


def linked(r: Path, target: str, link: str) -> None:
    put(r / "x/1.png")
    os.symlink(r / target, r / link, target_is_directory=(r / target).is_dir())


add("links", "to a folder", lambda r: linked(r, "x", "y"), names("x/1.png", "y/1.png"))
add("links", "to a file", lambda r: linked(r, "x/1.png", "x/2.png"), names("x/1.png", "x/2.png"))
add("links", "to a folder above", lambda r: linked(r, ".", "x/again"), names("x/1.png"), said="links to a folder above")
add("links", "to nothing", lambda r: linked(r, "gone.png", "x/2.png"), names("x/1.png"), said="links to nothing")
for name in (
    "a b.png",
    "e\u0301t.png",
    "-dash.png",
    "100%.png",
    "日本.png",
    "🦋.png",
):
    add("names", name, lambda r, n=name: put(r / n), names(name))
latin = os.fsdecode(b"caf\xe9.png")
add("names", "a name in Latin-1", lambda r: os.rename(put(r / "x.png"), r / latin), names(latin))
add("names", "one stem, two endings", lambda r: (put(r / "1.jpg"), put(r / "1.png")), names("1.jpg", "1.png"))
