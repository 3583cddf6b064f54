"""Look heads: fitted to saliency maps in one pass of a frozen network, and shown; and the maps that pooling needs."""

from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import inspect, reading
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation import localization
from cvsa_jax.evaluation.comparison import Candidate
from cvsa_jax.evaluation.features import evenly
from cvsa_jax.evaluation.look import Guide, LookHead
from cvsa_jax.evaluation.protocol import Probe
from cvsa_jax.report import html, pictures
from cvsa_jax.report.columns import LOCALIZATION, table
from cvsa_jax.runtime.distributed import is_first, make_mesh
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, as_path, output_file, report_folder, write_json_atomically
from cvsa_jax.saliency.detector import squeezed
from cvsa_jax.saliency.registry import DETECTORS
from cvsa_jax.saliency.store import SaliencyStore, store_path
from cvsa_jax.weights import frozen, look_file

_SIZE = 128  # px of the pictured images
_PICTURED = 10


def fit(config: ConfigDict, run: str, detector: str, out: str, images: int = 0) -> LookHead:
    """Fits a head to the maps of the train images and writes it to `out`.

    Args:
        config: of a pre-training, for its data set and its saliency store; `config.seed` draws the images.
        detector: whose store it is, or the folder of one; "": the config's store.
        run: workdir of a run, a file of weights, or one of features with `patches`.
        images: so many of the train images, at random; 0: all.

    Raises:
        UserError: there are no maps, no such network, or no two images whose maps show anything.
    """
    if detector and config.saliency.store:
        raise UserError(f"--detector={detector} and config.saliency.store={config.saliency.store}: give one of them")
    path = output_file("--out", out, ".safetensors")
    source = settings.load_source(config.data)
    usual = store_path(config.saliency.store, source.name, config.saliency.detector)
    store = named_store(detector, source) if detector else SaliencyStore(usual, source)
    train = reading.readable(source, source.split(config.data.train_split), config.data.on_bad_image, store.usable)
    if images > len(train):
        raise UserError(f"--images={images}: {source.name} has {len(train)} train images")
    if images:
        train = np.sort(np.random.default_rng(config.seed).choice(train, images, replace=False))
    of = _candidate(config, run, source, train, Guide(maps=store))
    head = of.evaluator.fit_head(of.network, train)
    if head.images < len(train):
        print(f"{len(train) - head.images} of {len(train)} maps in {store.folder} are blank, and left out")
    about = {
        "look.network": run,
        "look.images": f"{head.images} of {source.name}",
        "look.size": str(of.evaluator.size),
        "look.ridge": f"{head.ridge:g}",
        "look.explained": f"{head.explained:.4f}",
        "look.detector": store.manifest["detector"],
        "look.supervision": store.manifest["supervision"],
    }
    if of.network is not None:
        about[look_file.BACKBONE] = look_file.backbone_hash(of.network)
    if is_first():
        look_file.write(path, head, about)
        print(
            f"{path}: fitted to the maps of {head.images} train images of {source.name} (detector "
            f"{store.manifest['detector']}, supervision: {store.manifest['supervision']}; no class labels); "
            f"{head.explained:.0%} of the maps' variance is explained in images that it was not fitted to; ridge "
            f"{head.ridge:g}, power {head.power:g}"
        )
    return head


def show(config: ConfigDict, run: str, look: str, out: AnyPath) -> dict[str, float]:
    """Writes `out/report/`, a page of what a head reads off a network on the test images of `config.data`, or on all
    where there is no such split. Figures against masks or boxes, where there are any, are on it, and are returned.
    UserError where the head is another network's, or masks or boxes are wrong."""
    report_folder("--out", out)
    source = settings.load_source(config.data)
    split = config.data.test_split if config.data.test_split in source.splits else "all"
    test = reading.readable(source, source.split(split), config.data.on_bad_image)
    with config.unlocked():
        config.eval.look = look
    of = _candidate(config, run, source, test)
    inspect.check_annotations(source, test)
    key = of.evaluator.key(of.network, test)
    maps = of.evaluator.maps(of.network, test, key)
    masks = None if source.mask is None else of.evaluator.masks(test)
    figures = {name: of.evaluator.localization(maps[name], test, masks) for name in ("look", "component")}
    if not is_first():
        return figures["look"]
    folder = out / "report"
    write_json_atomically(folder / "results.json", figures)
    shown = evenly(np.arange(len(test)), _PICTURED)
    images = np.stack([squeezed(reading.load_image(source, int(i)), _SIZE) for i in test[shown]])
    titles = {"look": "look head", "component": "first component"}
    rows = {
        title: np.stack([localization.upsample(maps[name][k], _SIZE) for k in shown]) for name, title in titles.items()
    }
    caption = "Evenly spaced images." + (" The line is the true mask." if masks is not None else "")
    outlines = None if masks is None else localization.square_masks(source, test[shown], _SIZE)
    picture = pictures.attention_picture(folder / "look.png", images, rows, outlines, caption)
    _, about = look_file.read(look)
    facts = "; ".join(f"{name}: {told}" for name, told in look_file.facts(about).items())
    shown_on = f"{len(test)} images of {source.name}, {'the whole set' if split == 'all' else f'split {split}'}"
    blocks = [f"The look head {look} on {shown_on}. {facts}.", "# Where it looks", picture]
    if figures["look"]:
        measured = table([(title, figures[name]) for name, title in titles.items()], LOCALIZATION, corner="map")
        blocks.append(measured)
        print(f"{measured.as_text()}\n\non {shown_on}")
    print(f"report: {html.write_page(folder / 'index.html', f'Look head on {source.name}', blocks)}")
    return figures["look"]


def pooling_maps(evaluation: ConfigDict, source: Source) -> SaliencyStore | None:
    """The store of maps that `config.eval.pooling` needs; UserError where it needs one and none is named."""
    if evaluation.pooling == "head" and evaluation.look and evaluation.maps:
        raise UserError("config.eval.look and config.eval.maps: give a head, or maps to which one is fitted")
    if evaluation.pooling != "saliency" and (evaluation.pooling != "head" or evaluation.look):
        return None
    if not evaluation.maps:
        instead = "" if evaluation.pooling == "saliency" else ", or give a look head with config.eval.look"
        raise UserError(
            f"config.eval.pooling={evaluation.pooling} needs saliency maps: name their detector, or the folder of "
            f"their store, with config.eval.maps{instead}"
        )
    return named_store(evaluation.maps, source)


def named_store(named: str, source: Source) -> SaliencyStore:
    """The store that a detector made in its usual place, or that of a folder."""
    return SaliencyStore(store_path("" if named in DETECTORS else named, source.name, named), source)


def check_crops(poolings: dict[str, str], probe: Probe) -> None:
    """UserError where a probe on augmented crops meets features that whole images' maps pool; title -> pooling."""
    pooled = [title for title, pooling in poolings.items() if pooling == "saliency"]
    if pooled and probe.crop_area is not None:
        raise UserError(
            "config.probe.augmented=True shows the network crops, whose maps are not known: take another "
            f"config.eval.pooling than saliency{f' for {some(pooled)}' if pooled[0] else ''}, such as head"
        )


def check_used(evaluation: ConfigDict, poolings: Iterable[str]) -> None:
    """UserError where `config.eval` names a head or maps and nothing is pooled by them."""
    if evaluation.look and "head" not in poolings:
        raise UserError(f"config.eval.look={evaluation.look} belongs to config.eval.pooling=head")
    if evaluation.maps and not {"head", "saliency"} & set(poolings):
        raise UserError(f"config.eval.maps={evaluation.maps} belongs to config.eval.pooling=saliency, or head")


def _candidate(
    config: ConfigDict, run: str, source: Source, images: np.ndarray, guide: Guide | None = None
) -> Candidate:
    """A network, or features, whose cells a head weights."""
    evaluation = ConfigDict(config.eval.to_dict() | {"pooling": "head"})
    maps = None if guide is None else guide.maps
    return frozen.candidate(as_path(run).name, run, source, evaluation, make_mesh(), images, maps)
