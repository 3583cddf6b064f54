"""Nearest neighbours and near-duplicates among embedded images, as a page of pictures."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cvsa_jax.data import decode, reading, sources
from cvsa_jax.data.sources import Source
from cvsa_jax.data.sources.source import fingerprint
from cvsa_jax.evaluation.neighbors import nearest
from cvsa_jax.report import html, pictures
from cvsa_jax.runs.embed import Pooling, pooling_evaluator
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import as_text, output_file, write_json_atomically
from cvsa_jax.saliency.detector import squeezed
from cvsa_jax.training.state import tree_hash
from cvsa_jax.weights import frozen

_SIZE = 128  # px of the pictured images
_ROUNDING = 1e-6  # by which the cosine of equal vectors may miss 1 in float32
_SHOWN = 60  # groups of duplicates on a page; the JSON has all


class Index(NamedTuple):
    """What `embed` wrote: `names`, `vectors` (n, C), and what they are of."""

    names: list[str]
    vectors: np.ndarray
    about: dict


def neighbors(index: str, queries: list[str], out: str, k: int) -> None:
    """A page of the k nearest images of each query, a file or a name in the index, and JSON beside it.

    Raises:
        UserError: the index, its images or its network are not there, or a query is none.
    """
    known, page = _read(index), _page(out)
    source = _source(known)
    queries = [_named(query, known) for query in queries]
    vectors = _vectors(known, source, queries)
    itself = [known.names.index(query) if query in known.names else -1 for query in queries]
    found, blocks = [], []
    for chunk, cosines, rows in nearest(vectors, known.vectors, k + 1):
        for at, close, row in zip(range(chunk.start, chunk.stop), cosines, rows, strict=True):
            keep = row != itself[at]
            close, row = close[keep][:k], row[keep][:k]
            hits = [{"name": known.names[i], "cosine": float(c)} for i, c in zip(row, close, strict=True)]
            found.append({"query": queries[at], "neighbors": hits})
            query = _picture(Path(queries[at])) if itself[at] < 0 else _pictured(source, known, [itself[at]])[0]
            sheet = np.stack([query, *_pictured(source, known, row)])
            titles = ["query", *(f"{hit['cosine']:.3f} {Path(hit['name']).name}" for hit in hits)]
            blocks.append((f"# {queries[at]}", sheet, titles, ", ".join(hit["name"] for hit in hits)))
    _write(page, f"Nearest neighbours in {Path(index).name}", [_about(known)], blocks, {"queries": found})


def duplicates(index: str, cosine: float, out: str) -> None:
    """A page of the groups of images that are chained by pairs of at least this cosine, and JSON of all of them.

    Raises:
        UserError: the index or its images are not there.
    """
    known, page = _read(index), _page(out)
    pairs = _pairs(known.vectors, cosine - _ROUNDING)
    groups, source = _groups(pairs), _source(known)
    told = [[known.names[i] for i in group] for group in groups]
    first = f"{len(pairs)} pairs of cosine {cosine:g} or more, in {len(groups)} groups of {len(known.names)} images."
    if len(groups) > _SHOWN:
        first += f" The page shows the {_SHOWN} largest groups, the JSON beside it all."
    blocks = []
    for number, group in enumerate(groups[:_SHOWN], 1):
        names = [known.names[i] for i in group[:24]]
        titles = [Path(name).name for name in names]
        blocks.append(
            (f"# Group {number}: {len(group)} images", _pictured(source, known, group[:24]), titles, ", ".join(names))
        )
    listed = [{"a": known.names[i], "b": known.names[j], "cosine": c} for i, j, c in pairs]
    _write(
        page,
        f"Near-duplicates in {Path(index).name}",
        [first, _about(known)],
        blocks,
        {"groups": told, "pairs": listed},
    )


def _pairs(vectors: np.ndarray, cosine: float) -> list[tuple[int, int, float]]:
    """Every pair i < j of at least this cosine, the closest first."""
    pairs, k = [], 16
    while True:
        pairs.clear()
        full = False
        for chunk, close, rows in nearest(vectors, vectors, k, among_themselves=True):
            at, place = np.nonzero(close >= cosine)
            full |= bool((close[:, -1] >= cosine).any())
            i, j = chunk.start + at, rows[at, place]
            pairs += [(int(a), int(b), float(c)) for a, b, c in zip(i, j, close[at, place], strict=True) if a < b]
        if not full or k >= len(vectors) - 1:
            return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))
        k *= 4  # some image has more neighbours so close than were asked for


def _groups(pairs: list[tuple[int, int, float]]) -> list[list[int]]:
    """The images that pairs chain together, the largest group first."""
    leader: dict[int, int] = {}

    def find(i: int) -> int:
        leader.setdefault(i, i)
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i, j, _ in pairs:
        leader[find(j)] = find(i)
    groups: dict[int, list[int]] = {}
    for i in sorted(leader):
        groups.setdefault(find(i), []).append(i)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def _read(index: str) -> Index:
    try:
        with np.load(Path(index).expanduser()) as arrays:
            names, vectors = [str(name) for name in arrays["names"]], np.asarray(arrays["vectors"], np.float32)
            about = json.loads(str(arrays["about"]))
    except Exception:  # a broken file raises whatever its reader stumbles over
        raise UserError(
            f"--index={index} is no .npz that python -m cvsa_jax.embed wrote with its vectors; other features, or a "
            ".csv, cannot be searched"
        ) from None
    if len(vectors) < 2:
        raise UserError(f"--index={index} holds {len(vectors)} images: there is nothing to compare")
    return Index(names, vectors, about)


def _page(out: str) -> Path:
    return output_file("--out", out, ".html")


def _source(index: Index) -> Source:
    source = sources.load("folder", index.about["data"])
    if missing := sorted(set(index.names) - set(map(as_text, source.names))):
        raise UserError(f"{index.about['data']} no longer has {len(missing)} images of the index: {some(missing)}")
    if source.fingerprint != index.about["fingerprint"]:
        raise UserError(f"the images in {index.about['data']} have changed since the index was made: embed them again")
    return source


def _named(query: str, index: Index) -> str:
    """The query's name in the index, where it is one or the path of an image in it; else its path."""
    path, folder = Path(query).expanduser(), Path(index.about["data"]).resolve()
    inside = path.resolve().relative_to(folder).as_posix() if path.resolve().is_relative_to(folder) else ""
    names = (query, as_text(inside), as_text(inside.partition("/")[2]))  # the images may lie in a folder `images`
    return next((name for name in names if name in index.names), str(path))


def _vectors(index: Index, source: Source, queries: list[str]) -> np.ndarray:
    """Those of the index, and of other files by the network that made the index."""
    place = {name: row for row, name in enumerate(index.names)}
    others = [query for query in queries if query not in place]
    if absent := [query for query in others if not Path(query).is_file()]:
        raise UserError(f"--query: {some(absent)} is neither a file nor a name in the index, such as {index.names[0]}")
    made: dict[str, np.ndarray] = {}
    if others:
        mesh = make_mesh(jax.local_devices())
        network = frozen.load(index.about["run"], mesh)
        if tree_hash(network.network) != index.about["weights"]:
            raise UserError(f"{index.about['run']} has changed since the index was made: embed the images again")
        pooling = Pooling(index.about["pooling"], index.about.get("look", ""), index.about.get("maps", ""))
        if pooling.kind == "saliency":
            raise UserError(
                f"the index was pooled by saliency maps, and there are none of {some(others)}: name images of it"
            )
        files = Source(
            name="queries",
            names=tuple(others),
            labels=None,
            classes=(),
            splits={},
            read=lambda i: Path(others[int(i)]).read_bytes(),
            mask=None,
            identify=lambda kind: fingerprint(others, [0] * len(others)),
        )
        if pooling.look and not Path(pooling.look).is_file():
            raise UserError(
                f"the index was pooled by the look head {pooling.look}, which is gone: put it back, or embed again"
            )
        own, evaluator = (pooling_evaluator(network, mesh, of, pooling, index.about["run"]) for of in (source, files))
        key = own.key(network.network, _rows(source, index))
        if pooling.look and tree_hash(key) != index.about["head"]:
            raise UserError(f"{pooling.look} has changed since the index was made: embed the images again")
        features = evaluator.features(network.network, np.arange(len(others)), key)
        made = dict(zip(others, features, strict=True))
    return np.stack([made[query] if query in made else index.vectors[place[query]] for query in queries])


def _picture(path: Path) -> np.ndarray:
    return squeezed(np.asarray(decode.opened(path.read_bytes()).pixels()), _SIZE)


def _pictured(source: Source, index: Index, rows) -> np.ndarray:
    places = _rows(source, index)
    return np.stack([squeezed(reading.load_image(source, int(places[int(row)])), _SIZE) for row in rows])


def _rows(source: Source, index: Index) -> np.ndarray:
    """Which image of the source each row of the index is."""
    place = {as_text(name): i for i, name in enumerate(source.names)}
    return np.array([place[name] for name in index.names])


def _about(index: Index) -> str:
    return f"{len(index.names)} images of {index.about['data']}, by {index.about['network']}."


def _write(page: Path, title: str, notes: list[str], blocks: list[tuple], figures: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = list(notes)
        for number, (heading, images, titles, caption) in enumerate(blocks):
            path = Path(folder) / f"{number}.png"
            content += [heading, pictures.contact_sheet(path, images, None, None, titles, caption)]
        html.write_page(page, title, content)
    write_json_atomically(page.with_suffix(".json"), figures)
    print(f"{notes[0]}\npage: {page}, figures: {page.with_suffix('.json')}")
