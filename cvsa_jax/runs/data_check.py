"""A look at a data set before anything is trained on it: counts, damaged and repeated images, annotations, a page."""

import collections

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from cvsa_jax import settings
from cvsa_jax.data import inspect
from cvsa_jax.data.reading import load_image
from cvsa_jax.data.sources import Source
from cvsa_jax.evaluation.features import evenly
from cvsa_jax.evaluation.localization import square_masks
from cvsa_jax.report import html, pictures
from cvsa_jax.runtime import checks
from cvsa_jax.runtime.errors import UserError, some
from cvsa_jax.runtime.files import AnyPath, report_folder, write_json_atomically

_SHOWN, _SIZE = 24, 96  # images on the page, and their side in px
_FULL, _MOST = 0.8, 0.5  # a mask that covers more of its image is mostly object; the share of such that is odd


def check(config: ConfigDict, out: AnyPath, images: int | None, near: bool) -> None:
    """Looks at the data set of `config.data`, prints what it finds, and writes `out/report/`.

    Args:
        images: looked at, evenly spaced; None: all. Counts are always of all.
        near: also look for nearly equal images.

    Raises:
        UserError: training would be refused, with the reasons, after everything is written.
    """
    checks.at_least("--images", 0 if images is None else images, 0)
    report_folder("--out", out)
    source = settings.load_source(config.data)
    looked = np.arange(len(source)) if images is None else evenly(np.arange(len(source)), images)
    seen = inspect.inspect(source, looked) if len(looked) else []
    facts, figures = _counts(source)
    lists: dict[str, list[str]] = {reason: list(names) for reason, names in source.left_out.items()}
    refused, warnings = _findings(config, source, looked, seen, near, lists)
    figures |= {"images_looked_at": len(looked)} | {key.replace(" ", "_"): len(names) for key, names in lists.items()}
    figures |= {"refused": len(refused), "warnings": len(warnings)}
    if seen and (sizes := [one.size for one in seen if not one.unreadable]):
        heights, widths = zip(*sizes, strict=True)
        facts.append(
            f"Images of {min(widths)}×{min(heights)} to {max(widths)}×{max(heights)} px, in the middle "
            f"{int(np.median(widths))}×{int(np.median(heights))}."
        )
    if kinds := collections.Counter(one.mask_kind for one in seen if one.mask_kind):
        facts.append(f"Masks: {', '.join(f'{kind} ({count:,})' for kind, count in kinds.most_common())}.")
    print("\n".join([*facts, *(f"warning: {text}" for text in warnings)]), flush=True)
    folder = out / "report"
    write_json_atomically(folder / "results.json", figures | {"lists": lists})
    blocks = [*facts, *(f"Refused: {text}" for text in refused), *(f"Look at: {text}" for text in warnings)]
    good = [int(i) for i, one in zip(looked, seen, strict=True) if one.is_sound]
    picture = [_contact_sheet(source, evenly(np.array(good), _SHOWN), folder / "images.png")] if good else []
    page = html.write_page(folder / "index.html", f"The data set {source.name}", [*blocks, *picture])
    print(f"report: {page}")
    if refused:
        raise UserError("; ".join(refused))


def _counts(source: Source) -> tuple[list[str], dict[str, int]]:
    splits = {split: len(rows) for split, rows in source.splits.items()}
    figures = {"images": len(source)} | {f"images_{split}": n for split, n in splits.items()}
    listed = ", ".join(f"{split} {n:,}" for split, n in splits.items())
    facts = [f"{source.name}: {len(source):,} images ({listed}), fingerprint {source.fingerprint}."]
    if source.labels is None:
        return [*facts, "No labels."], figures
    of_class = np.bincount(source.labels, minlength=len(source.classes))
    facts.append(
        f"{len(source.classes):,} classes of {of_class.min()} to {of_class.max()} images, in the middle "
        f"{int(np.median(of_class))}."
    )
    return facts, figures | {"classes": len(source.classes)}


def _findings(config, source: Source, looked, seen: list[inspect.Seen], near: bool, lists: dict) -> tuple[list, list]:
    """What a training would refuse, and what is to be looked at; the names go to `lists`."""
    refused, warnings = [], []

    def found(key: str, rows: list[int], sentence: str, to: list[str], why: list[str] | None = None) -> None:
        if rows:
            names = [source.names[looked[row]] for row in rows]
            lists[key] = names
            shown = [f"{name} ({reason})" for name, reason in zip(names, why or names, strict=True)] if why else names
            to.append(f"{len(rows)} {sentence}: {some(shown)}")

    for split in (config.data.train_split, config.data.test_split):
        if split != "all" and not len(source.splits.get(split, ())):
            to = refused if split == config.data.train_split else warnings
            advice = "" if split == config.data.train_split else "; evaluation needs one: list it in splits.csv"
            to.append(f"there is no split {split!r}; there are {', '.join(source.splits) or 'none'}{advice}")
    bad = [row for row, one in enumerate(seen) if one.unreadable]
    stops = config.data.on_bad_image == "stop"
    reasons = [seen[row].unreadable for row in bad]
    found("unreadable", bad, "images cannot be decoded", refused if stops else warnings, reasons)
    detector = config.saliency.detector if "saliency" in config else ""
    masks = refused if detector == "masks" else warnings
    wrong = [row for row, one in enumerate(seen) if one.mask_error]
    found("wrong masks", wrong, "masks are wrong", masks, [seen[row].mask_error for row in wrong])
    wrong = [row for row, one in enumerate(seen) if one.box_error]
    boxes = refused if detector == "boxes" else warnings
    found("wrong boxes", wrong, "boxes are wrong", boxes, [seen[row].box_error for row in wrong])
    if {"masks": source.mask is None, "boxes": source.box is None}.get(detector, False):
        warnings.append(
            f"there are no {detector}, and config.saliency.detector is {detector!r}: make the maps with --detector=rbd "
            "and train with --config.saliency.detector=rbd"
        )
    if source.mask is not None:
        bare = np.flatnonzero(~source.has_mask(looked)).tolist()
        remedy = ", and config.saliency.detector is 'masks', which needs all: take another, such as rbd"
        found("without mask", bare, "images have no mask" + remedy * (detector == "masks"), masks)
        shares = {row: one.mask_share for row, one in enumerate(seen) if one.mask_share is not None}
        found("empty masks", [row for row, share in shares.items() if share == 0], "masks are empty", warnings)
        full = [row for row, share in shares.items() if share > _FULL]
        if len(full) > _MOST * len(shares):
            found("full masks", full, f"masks cover more than {_FULL:.0%} of their image: are they inverted", warnings)
    found("turned", [row for row, one in enumerate(seen) if one.turned], "images are turned upright (EXIF)", warnings)
    readable = [row for row, one in enumerate(seen) if not one.unreadable]
    faint = [readable[k] for k in inspect.faint_levels(seen[row].levels for row in readable)]
    found("faint", faint, "images use less than a sixteenth of their range of levels (black, or constant)", warnings)
    warnings += _classes(source) + _repeated(source, looked, seen, near, lists)
    return refused, warnings


def _classes(source: Source) -> list[str]:
    """A single class, and classes that only some of the splits have."""
    if source.labels is not None and len(source.classes) == 1:
        return [f"all images are of one class, {source.classes[0]}, so accuracies say nothing"]
    if source.labels is None or len(source.splits) < 2:
        return []
    in_split = {split: set(source.labels[rows].tolist()) for split, rows in source.splits.items()}
    everything = set.union(*in_split.values())
    return [
        f"{len(lacking)} classes have no image in {split}: {some(source.classes[k] for k in sorted(lacking))}"
        for split, present in in_split.items()
        if (lacking := everything - present)
    ]


def _repeated(source: Source, looked, seen: list[inspect.Seen], near: bool, lists: dict) -> list[str]:
    """Images that are equal byte by byte, or nearly, within a split and across."""
    split_of = collections.defaultdict(set)
    for split, rows in source.splits.items():
        for i in rows.tolist():
            split_of[i].add(split)
    groups = {"equal images": inspect.equal_groups(one.content for one in seen)}
    if near:
        readable = [row for row, one in enumerate(seen) if not one.unreadable]
        looks = np.array([seen[row].look for row in readable], np.uint64)
        pairs = [[readable[a], readable[b]] for a, b in inspect.near_pairs(looks)]
        groups["nearly equal images"] = [p for p in pairs if seen[p[0]].content != seen[p[1]].content]
    warnings = []
    for key, found in groups.items():
        named = [[source.names[looked[row]] for row in group] for group in found]
        if not found:
            continue
        lists[key] = listed = [" = ".join(names) for names in named]
        # Splits overlap where one is the union of others.
        together = [set.intersection(*(split_of[int(looked[row])] for row in group)) for group in found]
        across = [text for text, shared in zip(listed, together, strict=True) if not shared]
        note = f", {len(across)} of them across splits ({some(across, 2)})" if across else ""
        if source.labels is not None:
            odd = sum(len(set(source.labels[looked[group]].tolist())) > 1 for group in found)
            note += f", {odd} with different labels" if odd else ""
        warnings.append(f"{len(found)} groups of {key}{note}: {some(listed, 2)}")
    return warnings


def _contact_sheet(source: Source, indices: np.ndarray, path: AnyPath) -> pictures.Picture:
    images = [Image.fromarray(load_image(source, int(i))).resize((_SIZE, _SIZE)) for i in indices]
    masks = square_masks(source, indices, _SIZE) if source.mask is not None else None
    boxes = None if source.box is None else np.array([source.box(int(i)) for i in indices])
    titles = [source.classes[source.labels[i]] if source.labels is not None else "" for i in indices]
    caption = "Evenly spaced images, squeezed to squares, with the outlines of their masks and their boxes."
    return pictures.contact_sheet(path, np.stack(images), masks, boxes, titles, caption)
