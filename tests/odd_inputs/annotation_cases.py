"""Odd tables, boxes, masks, official sets and numbers: they join `cases.CASES`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from cases import add, names, put, raw, splits
from PIL import Image

from cvsa_jax.data.sources import Source

# Tables.

TABLE = "image,split,label\n1.png,train,x\n2.png,test,y\n"


def table(content: bytes | str, file: str = "splits.csv") -> Callable[[Path], None]:
    def build(r: Path) -> None:
        put(r / "1.png")
        put(r / "2.png")
        raw(r / file, content if isinstance(content, bytes) else content.encode())

    return build


GOOD = splits(train=["1.png"], test=["2.png"])
for name, content in {
    "UTF-8 with a mark": TABLE.encode("utf-8-sig"),
    "UTF-16": TABLE.encode("utf-16"),
    "semicolons": TABLE.replace(",", ";"),
    "tabs": TABLE.replace(",", "\t"),
    "lines of Windows": TABLE.replace("\n", "\r\n"),
    "blanks around the cells": TABLE.replace(",", " , "),
    "columns in capitals": TABLE.replace("image,split,label", "Image,SPLIT,Label"),
    "backslashes": TABLE.replace("1.png", ".\\1.png"),
    "quoted cells": TABLE.replace("x\n", '"x"\n'),
    "empty rows": TABLE + "\n,,\n",
    "another column": TABLE.replace("label\n", "label,note\n").replace("x\n", "x,hm\n").replace("y\n", "y,\n"),
    "split names in capitals": TABLE.replace("train", "Training").replace("test", "TEST"),
}.items():
    add("tables", name, table(content), GOOD)
add("tables", "Latin-1", table(TABLE.replace("x", "é").encode("latin-1")), GOOD, said="is not UTF-8")
for name, content, reason in (
    ("no column image", TABLE.replace("image", "file"), "must have the columns image,split"),
    ("no column split", TABLE.replace("split", "part"), "must have the columns image,split"),
    ("an empty file", "", "must have the columns"),
    ("binary", b"\x00\x01\x02", "is no text|must have the columns"),
    ("an image twice", TABLE + "1.png,train,x\n", "lists images twice: 1.png in rows 2 and 4"),
    ("an image that is not there", TABLE + "3.png,train,x\n", r"not readable images in .*3\.png"),
    ("an image that is not listed", TABLE.replace("2.png,test,y\n", ""), r"not listed in .*2\.png"),
    ("a split without a name", TABLE.replace("test", ""), "row 3: no split"),
    ("an image without a name", TABLE.replace("2.png", ""), "row 3: no image"),
    ("a label without a name", TABLE.replace("y\n", "\n"), "row 3: no label"),
    ("a row that is too short", TABLE.replace("2.png,test,y", "2.png"), "row 3: no split"),
):
    add("tables", name, table(content), refused=reason)
add("tables", "a split that nothing uses", table(TABLE.replace("test", "x7")), said="splits that nothing uses.*x7")
add("tables", "labels alike", table(TABLE.replace(",y", ",X")), said="differ in case, blanks or accents")
BOXES = "image,x,y,width,height\n1.png,1,2,10,8\n2.png,0,0,24,16\n"
add(
    "boxes",
    "in pixels",
    table(BOXES, "boxes.csv"),
    lambda source, images: np.allclose(source.box(0), [2 / 16, 1 / 24, 10 / 16, 11 / 24]),
)
add(
    "boxes",
    "with commas for points",
    table(BOXES.replace(",", ";").replace("10;", "10,0;"), "boxes.csv"),
    names("1.png", "2.png"),
)
for name, content, reason in (
    ("as fractions", "image,x,y,width,height\n1.png,.1,.1,.5,.5\n2.png,0,0,1,1\n", r"within \[0, 1\], as fractions"),
    ("outside of the image", BOXES.replace("10,8", "90,8"), "does not lie in it"),
    ("of negative width", BOXES.replace("10,8", "-4,8"), "does not lie in it"),
    ("that are no numbers", BOXES.replace("10,8", "ten,8"), "not four numbers: .*ten"),
    ("that are NaN", BOXES.replace("10,8", "nan,8"), "does not lie in it"),
    ("of some images", BOXES.replace("2.png,0,0,24,16\n", ""), r"has no box of 1 images: 2\.png"),
    ("without a cell", BOXES.replace("10,8", ",8"), "row 2: no width"),
):
    add("boxes", name, table(content, "boxes.csv"), refused=reason)
add("boxes", "of an image that is not there", table(BOXES + "9.png,1,1,1,1\n", "boxes.csv"), said=r"not there: 9\.png")

# Masks.

INSIDE = np.zeros((16, 24), bool)
INSIDE[4:12, 6:18] = True


def masked(save: Callable[[Path], object], name: str = "masks/1.png") -> Callable[[Path], None]:
    def build(r: Path) -> None:
        put(r / "images/1.jpg")
        (r / name).parent.mkdir(parents=True, exist_ok=True)
        save(r / name)

    return build


def two(low, high, kind=np.uint8) -> Image.Image:
    shape = INSIDE[..., None] if np.ndim(high) else INSIDE
    return Image.fromarray(np.where(shape, high, low).astype(kind))


def is_mask(source: Source, images: list[np.ndarray]) -> bool:
    return bool((source.mask(0) == np.where(INSIDE, 255, 0)).all())


palette = two(0, 1).convert("P")
palette.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
trimap = np.where(INSIDE, 1, 2).astype(np.uint8)
trimap[4, 6:18] = 3
for name, image in {
    "0 and 255": two(0, 255), "0 and 1": two(0, 1), "3 and 7": two(3, 7), "one bit": two(0, 255).convert("1"),
    "16 bits": two(0, 65535, np.uint16), "a palette": palette, "red": two((0, 0, 0), (255, 0, 0)),
    "green": two((0, 0, 0), (0, 9, 0)), "alpha": two((0, 0, 0, 0), (0, 0, 0, 255)),
    "a trimap": Image.fromarray(trimap),
}.items():  # fmt: skip
    add("masks", f"of the values of {name}", masked(lambda p, i=image: i.save(p)), is_mask)
for name in ("Masks/1.png", "mask/1.png", "masks/1.bmp", "masks/1_mask.png", "masks/1.jpg.png", "images/1_mask.png"):
    add("masks", f"as {name}", masked(lambda p: two(0, 255).save(p), name), is_mask)
ramp = Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) * 10, (16, 1)))
ids = Image.fromarray((np.arange(16 * 24).reshape(16, 24) % 7).astype(np.uint8))
noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8))
for name, image, reason in (
    ("of ids", ids, "has 7 values"),
    ("of 1 and 2", two(2, 1), "has the values 1 and 2"),
    ("that is a photograph", noise, "is a colour picture"),
    ("of another aspect", Image.new("L", (16, 24)), "they must have one aspect"),
):
    add("masks", name, masked(lambda p, i=image: i.save(p)), refused=reason)
add("masks", "of degrees", masked(ramp.save), lambda source, images: bool((source.mask(0) == np.asarray(ramp)).all()))
add("masks", "that is no image", masked(lambda p: p.write_bytes(b"x")), refused="cannot read mask")
add(
    "masks",
    "of no image",
    masked(lambda p: two(0, 255).save(p), "masks/other.png"),
    lambda source, images: source.mask is None,
    said="masks that belong to no image",
)


def one_masked(r: Path) -> None:
    for name in ("images/1.jpg", "images/2.jpg"):
        put(r / name)
    put(r / "masks/2.png", two(0, 255))


add("masks", "of one image of two", one_masked, lambda source, images: source.masked.tolist() == [False, True])

# Official sets of which something is missing.

for kind in ("cub", "nabirds", "aircraft", "cars", "dogs", "inat", "inat:2021", "pets", "flowers", "food"):
    add(
        "official sets",
        f"{kind}: nothing there",
        lambda r: None,
        refused="is at http.*: get .* and give the folder",
        kind=kind,
    )
add("official sets", "an unknown set", lambda r: None, refused="is unknown; take one of", kind="imagenet")
add("official sets", "an unknown level", lambda r: None, refused="take one of variant", kind="aircraft:model")
add("official sets", "an unknown kind", lambda r: None, refused="is unknown; take one of", kind="gs")

# Numbers of the config.

for key, value, reason in (
    ("batch_size", 0, "out of range"),
    ("optim.lr", float("nan"), "finite"),
    ("views.crop_area", ("(a)",), "no list of numbers"),
):
    add(
        "numbers",
        f"{key}={value}",
        lambda r: put(r / "1.png"),
        refused=rf"^config\.{key}=.*{reason}",
        keys=((key, value),),
    )
