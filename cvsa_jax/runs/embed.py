"""Features of a folder of images, to a file."""

import csv
import dataclasses
import io
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cvsa_jax.data import reading, sources
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.evaluator import Evaluator
from cvsa_jax.evaluation.look import NO_GUIDE, Guide
from cvsa_jax.evaluation.neighbors import unit
from cvsa_jax.evaluation.probe import logits
from cvsa_jax.runs.look import named_store
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import (
    absolute,
    as_text,
    output_file,
    output_folder,
    read_json,
    write_atomically,
    write_json_atomically,
)
from cvsa_jax.runtime.lock import Lock
from cvsa_jax.training.state import tree_hash
from cvsa_jax.weights import frozen, look_file
from cvsa_jax.weights.frozen import Frozen

KINDS = (".npz", ".csv", ".parquet")
PART = 4096  # images of a part, which is done again after an interruption


class Pooling(NamedTuple):
    """Of the cells: one of `protocol.POOLINGS`, by `head` the file of a look head, by `saliency` the detector or the
    folder of a store of the images' maps."""

    kind: str = "average"
    look: str = ""
    maps: str = ""


AVERAGE = Pooling()


@dataclasses.dataclass(frozen=True)
class Options:
    """`vectors`: `raw`, of length 1 (`unit`), or `none`; `pooling` of the cells; `predict`: so many classes of a
    fine-tuned network; `shard`: i/n of n processes; `skip`: leave unreadable images out."""

    vectors: str = "raw"
    pooling: Pooling = AVERAGE
    predict: int = 0
    shard: str = "0/1"
    skip: bool = False


def embed(run: str, data: str, out: str, options: Options) -> None:
    """Writes the features of the images in the folder `data`, and their names, labels and predictions where there are
    any. Parts of it lie beside `out` until all are there: the same command goes on, and several processes share the
    parts.

    Raises:
        UserError: the network, the images or the file cannot be used, or the parts are of something else.
    """
    # 1) Images, network, and what the file will hold.
    path, (index, count) = _file(out), _shard(options.shard)
    _check_pooling(options.pooling)
    source, mesh = sources.load("folder", data), make_mesh(jax.local_devices())
    network = frozen.load(run, mesh)
    if options.predict and not network.classes:
        raise UserError(f"--predict={options.predict}: {network.about} has no classifier; give a fine-tuned run")
    if options.predict and options.pooling.kind != "average":
        raise UserError("--predict: the classifier was trained on averaged features; leave out --pooling")
    evaluator = pooling_evaluator(network, mesh, source, options.pooling, run)
    images = reading.readable(source, np.arange(len(source)), "skip" if options.skip else "stop")
    about = {"run": str(absolute(run)), "network": network.about, "weights": tree_hash(network.network)}
    about |= {"data": str(absolute(data)), "fingerprint": source.fingerprint, "images": len(images)}
    about |= {"size": evaluator.spec.size, "resize": evaluator.spec.resize}
    about |= _of_pooling(evaluator, options.pooling)
    print(f"{source.name}: {len(images)} images by {network.about}", flush=True)

    # 2) The parts of this process.
    parts = path.with_name(f"{path.name}.parts")
    if count > 1 and path.is_file() and not parts.exists():
        print(f"{path} is there already: delete it to make it anew")
        return
    _same(parts, about)
    lock = Lock(parts / f"shard-{index}-of-{count}")  # of another process at the same work
    places = {k: parts / f"{k:06d}.npy" for k in range(-(-len(images) // PART))}
    key = evaluator.key(network.network, images)
    for k, place in places.items():
        if k % count == index and not place.is_file():
            features = evaluator.features(network.network, images[k * PART : (k + 1) * PART], key)
            write_atomically(place, lambda file, features=features: np.save(file, features))

    # 3) All together, by whoever comes last.
    if missing := sum(not place.is_file() for place in places.values()):
        if not parts.exists() and path.is_file():
            print(f"{path} was written by another process meanwhile")
        else:
            print(f"{missing} of {len(places)} parts are another process's, which will write {path} when it has them")
        return
    features = np.concatenate([np.load(place) for place in places.values()])
    columns = _columns(source, images, features, network, options)
    write_atomically(
        path, lambda file: file.write(_encoded(path.suffix, columns, about | {"vectors": options.vectors}))
    )
    lock.release()
    shutil.rmtree(parts, ignore_errors=True)
    print(f"{path}: {', '.join(f'{name} {array.shape}' for name, array in columns.items())}")


def pooling_evaluator(network: Frozen, mesh: Mesh, source: Source, pooling: Pooling, run: str) -> Evaluator:
    """An evaluator whose features are pooled so; UserError where the head or the maps are not there, or of something
    else."""
    guide = NO_GUIDE
    if pooling.look:
        guide = Guide(head=look_file.of_network(pooling.look, network.network, run))
    if pooling.maps:
        guide = Guide(maps=named_store(pooling.maps, source))
    spec = dataclasses.replace(network.spec(), pooling=pooling.kind)
    return Evaluator(network.model, mesh, source, spec, guide)


def _check_pooling(pooling: Pooling) -> None:
    for flag, kind, value in (("look", "head", pooling.look), ("maps", "saliency", pooling.maps)):
        if bool(value) != (pooling.kind == kind):
            raise UserError(f"--{flag} belongs to --pooling={kind}, which needs it")


def _of_pooling(evaluator: Evaluator, pooling: Pooling) -> dict[str, str | float]:
    """What the file says of how its vectors were pooled."""
    told = {"pooling": pooling.kind}
    if pooling.look:
        told |= {"look": str(absolute(pooling.look)), "head": tree_hash(evaluator.guide.head.vector)}
    if pooling.maps:
        store = evaluator.guide.maps
        told |= {
            "maps": str(absolute(store.folder)),
            "made by": json.dumps(store.identity),
            "power": evaluator.guide.power,
        }
    return told


def _file(out: str) -> Path:
    path = output_file("--out", out, *KINDS)
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(f"--out={out} needs pyarrow: pip install pyarrow, or take .npz or .csv") from None
    return path


def _shard(shard: str) -> tuple[int, int]:
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard={shard}: give i/n with i from 0 to n − 1, such as 0/4")
    return int(index), int(count)


def _same(parts: Path, about: dict) -> None:
    """The folder of the parts, which must be those of the same network and images."""
    known, ours = parts / "about.json", parts / f"about-{os.getpid()}.json"
    output_folder("--out", parts)
    write_json_atomically(ours, about)
    try:  # of several processes that begin at once, the first says what it is of
        os.link(ours, known)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not known.is_file():
            write_json_atomically(known, about)
    finally:
        ours.unlink()
    if (there := read_json(known)) != about:
        different = ", ".join(key for key in about if about[key] != there.get(key))
        raise UserError(
            f"{parts} holds parts of another embedding ({different} differ): delete it, or take another --out"
        )


def _columns(
    source: Source, images: np.ndarray, features: np.ndarray, network: Frozen, options: Options
) -> dict[str, np.ndarray]:
    columns = {"names": np.array([as_text(source.names[i]) for i in images])}
    if source.labels is not None:
        columns["labels"] = np.array(source.classes)[source.labels[images]]
    if options.predict:
        head = {name: np.asarray(leaf) for name, leaf in network.network.params["head"].items()}
        scores = logits(np.concatenate([head["kernel"], head["bias"][None]]), features)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        top = np.argsort(-shares, 1, kind="stable")[:, : options.predict]
        columns |= {"predicted": np.array(network.classes)[top], "probabilities": np.take_along_axis(shares, top, 1)}
    if options.vectors != "none":
        columns["vectors"] = unit(features) if options.vectors == "unit" else features
    return columns


def _encoded(kind: str, columns: dict[str, np.ndarray], about: dict) -> bytes:
    content = io.BytesIO()
    if kind == ".npz":
        np.savez(content, **columns, about=np.array(json.dumps(about)))
        return content.getvalue()
    flat = {}
    for name, array in columns.items():
        short = {"names": "name", "labels": "label", "vectors": "v", "probabilities": "probability"}.get(name, name)
        flat |= {short: array} if array.ndim == 1 else {f"{short}_{k}": column for k, column in enumerate(array.T)}
    if kind == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(flat)
        writer.writerows(zip(*flat.values(), strict=True))
        return text.getvalue().encode()
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(flat, metadata={"about": json.dumps(about)}), content)
    return content.getvalue()
