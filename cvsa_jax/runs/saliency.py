"""The saliency maps of a data set: made once into a store with its page, and stores side by side."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from cvsa_jax import settings
from cvsa_jax.data import inspect
from cvsa_jax.data.sources import Source
from cvsa_jax.report import saliency as pages
from cvsa_jax.runtime.distributed import is_first
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.compute import compute, finish_store
from cvsa_jax.saliency.registry import DETECTORS, Options, build
from cvsa_jax.saliency.store import REPORT_PAGE, SaliencyStore, store_path


def make_store(config: ConfigDict, detector: str, options: Options, shard: tuple[int, int] | None = None) -> None:
    """Makes the store of `config.data` by a detector, or this process's share of it, and the page when it is whole.

    Args:
        shard: (i, n): every n-th file from the i-th; None: the process's place in the cluster.
    """
    source = settings.load_source(config.data)
    folder = store_path(config.saliency.store, source.name, detector)
    built = build(detector, source, options)
    measured, about = _measured(source, config.data.test_split)
    inspect.check_annotations(source, measured)  # what the page needs, before the pass

    def make(share: tuple[int, int]) -> dict | None:
        threshold, on_bad_image = config.saliency.threshold, config.data.on_bad_image
        return compute(source, built, folder, threshold=threshold, on_bad_image=on_bad_image, shard=share)

    if shard is None and jax.process_count() > 1:
        _in_cluster(make)
        manifest = finish_store(source, folder)
        if not is_first():
            return
    else:
        manifest = make(shard or (0, 1))
    if manifest is None:
        done = f"share {shard[0]} of {shard[1]} is done" if shard else "the shares of other processes failed"
        print(f"{folder}: {done}; the store is finished when all are")
        return
    table = pages.write_store_page(SaliencyStore(folder, source), source, measured, about)
    print(
        f"{folder}: {manifest['images']} maps by {detector} (supervision: {manifest['supervision']}), mean area "
        f"{manifest['mean_area']:.0%}, {len(manifest['unreadable'])} unreadable\n\n{table.as_text()}\n\n"
        f"on {about}; report: {folder / REPORT_PAGE}"
    )


def _in_cluster(make: Callable[[tuple[int, int]], dict | None]) -> None:
    """Every process makes its share, and waits for the others, which must not wait for one that failed."""
    problem = None
    try:
        make((jax.process_index(), jax.process_count()))
    except UserError as error:
        problem = error
    multihost_utils.sync_global_devices("saliency maps")
    if problem is not None:
        raise problem


def compare_stores(config: ConfigDict, entries: list[str]) -> None:
    """Puts stores, given by names of detectors or as folders, side by side in `saliency/<data set>/report`."""
    source = settings.load_source(config.data)
    folders = {entry: store_path("" if entry in DETECTORS else entry, source.name, entry) for entry in entries}
    stores = {entry: SaliencyStore(folder, source) for entry, folder in folders.items()}
    if is_first():
        measured, about = _measured(source, config.data.test_split)
        report = store_path("", source.name, "report")
        table = pages.write_comparison(stores, source, measured, about, report)
        print(f"{table.as_text()}\n\non {about}; report: {report / REPORT_PAGE.name}")


def _measured(source: Source, test_split: str) -> tuple[np.ndarray, str]:
    """The images with which maps are compared with the truth, and what they are."""
    if test_split in source.splits or test_split == "all":
        indices = source.split(test_split)
        return indices, f"{len(indices)} images of split {test_split!r}"
    return source.split("all"), f"all {len(source)} images"
