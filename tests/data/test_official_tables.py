"""The real tables of official sets, with files of a few bytes in the place of the images."""

import json
import os
import shutil
from pathlib import Path

import pytest
from support.official_files import car, write, write_annotations
from support.small_sources import write_image

from cvsa_jax.data.sources import load
from cvsa_jax.runtime.errors import UserError

DATA = Path(os.environ.get("CVSA_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve() / "official"


def real(name: str, tmp_path: Path, images: str, names: list[str], top: str = "") -> str:
    root = tmp_path / name
    shutil.copytree(DATA / name, root)
    for name in names:
        path = root / images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return str(root)


def tables(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA} (set CVSA_TEST_DATA)")
    return DATA / name


def shares(source) -> dict[str, int]:
    return {split: len(rows) for split, rows in source.splits.items()}


def test_published_tables_of_aircraft(tmp_path, capsys):
    data = tables("fgvc-aircraft-2013b") / "data"
    ids = [line.split()[0] for line in (data / "images_box.txt").read_text().splitlines()]
    root = real("fgvc-aircraft-2013b", tmp_path, "data/images", [f"{i}.jpg" for i in ids])
    for level, count in (("variant", 100), ("family", 70), ("manufacturer", 30)):
        source = load(f"aircraft:{level}", root)
        assert shares(source) == {"train": 3334, "val": 3333, "test": 3333, "trainval": 6667}
        assert len(source.classes) == len(set(source.labels.tolist())) == count
    assert capsys.readouterr().out == ""


def test_published_tables_of_nabirds(tmp_path, capsys):
    names = [line.split()[1] for line in (tables("nabirds") / "images.txt").read_text().splitlines()]
    source = load("nabirds", real("nabirds", tmp_path, "images", names))
    assert shares(source) == {"train": 23_929, "test": 24_633} and len(source.classes) == 555
    assert capsys.readouterr().out == ""


def test_published_tables_of_cub(tmp_path, capsys):
    # Of which the names of the images are missing: they are made here from the classes.
    folder = tables("CUB_200_2011")
    classes = dict(line.split() for line in (folder / "classes.txt").read_text().splitlines())
    rows = [line.split() for line in (folder / "image_class_labels.txt").read_text().splitlines()]
    names = [f"{classes[c]}/{i}.jpg" for i, c in rows]
    root = real("CUB_200_2011", tmp_path, "images", names)
    write(Path(root) / "images.txt", *(f"{i} {name}" for (i, _), name in zip(rows, names, strict=True)))
    source = load("cub", root)
    assert shares(source) == {"train": 5994, "test": 5794} and len(source.classes) == 200
    assert capsys.readouterr().out == ""


def test_published_tables_of_flowers_and_cars(tmp_path, capsys):
    tables("flowers102"), tables("stanford_cars")
    root = real("flowers102", tmp_path, "jpg", [f"image_{k:05d}.jpg" for k in range(1, 8190)])
    source = load("flowers", root)
    assert shares(source) == {"train": 1020, "val": 1020, "test": 6149, "trainval": 2040} and len(source.classes) == 102
    root = real("stanford_cars", tmp_path, "cars_train", [f"{k:05d}.jpg" for k in range(1, 8145)])
    assert capsys.readouterr().out == ""
    # The test annotations of the devkit have no classes.
    with pytest.raises(UserError, match="no labels of the test images"):
        load("cars", root)
    write_image(Path(root) / "cars_test/00001.jpg")
    write_annotations(Path(root) / "cars_test_annos_withlabels.mat", [car("00001.jpg", 196)])
    source = load("cars", root)
    assert shares(source) == {"train": 8144, "test": 1} and len(source.classes) == 196


def test_published_table_of_inaturalist_2019(tmp_path):
    # As a table of 2018, which has the same form.
    content = json.loads((tables("inaturalist2019") / "val2019.json").read_text())
    names = [row["file_name"] for row in content["images"]]
    root = Path(real("inaturalist2019", tmp_path, "", names))
    for split in ("train", "val"):
        shutil.copy(root / "val2019.json", root / f"{split}2018.json")
    with pytest.raises(UserError, match=r"lists 3030 images twice"):
        load("inat", str(root))
    half = {
        "images": content["images"][:1000],
        "annotations": content["annotations"],
        "categories": content["categories"],
    }
    (root / "train2018.json").write_text(json.dumps(half))
    (root / "val2018.json").write_text(json.dumps(content | {"images": content["images"][1000:]}))
    source = load("inat", str(root))
    assert shares(source) == {"train": 1000, "val": 2030} and len(source) == len(names)
    assert len(source.classes) == 1010
