"""The page of a fine-tuning."""

import numpy as np

from cvsa_jax.data.sources import Source
from cvsa_jax.report import html, pictures
from cvsa_jax.report.columns import FINETUNED, GUESSES, LOCALIZATION, READINGS, Row, table
from cvsa_jax.runtime.files import AnyPath, write_json_atomically
from cvsa_jax.training.log import read_metrics

_PANELS = {
    "loss": ("train/loss",),
    "accuracy on its batches": ("train/top1",),
    "learning rate": ("train/learning_rate",),
}


def write_finetuned_page(
    workdir: AnyPath,
    source: Source,
    test: np.ndarray,
    guesses: dict[str, dict[str, float]],
    figures: dict[str, float],
    accuracies: list[Row],
    places: dict[str, dict[str, float]],
    last: AnyPath,
) -> None:
    """Writes `workdir/report/` and prints its tables.

    Args:
        guesses: figures of `chance` and of the `center_prior`.
        figures: of `results.json`.
        accuracies: a row for each fraction of the labels.
        places: name of a map of class activation -> its localisation figures.
        last: workdir of the training whose curves are shown.
    """
    folder = workdir / "report"
    write_json_atomically(folder / "results.json", figures)
    by_chance = {"finetune_top1": guesses["chance"]["linear_top1"]}
    recognition = table([*accuracies, (GUESSES["chance"], by_chance)], FINETUNED)
    looks = [((READINGS | GUESSES)[name], row) for name, row in (places | guesses).items()]
    tables = [recognition]
    if any(places.values()):
        tables.append(table(looks, [key for key in LOCALIZATION if key in places["cam"]]))
    caption = f"The training that was tested last, {last}."
    curves = pictures.curves_picture(folder / "curves.png", read_metrics(last), _PANELS, caption)
    note = (
        f"{len(test)} test images of {source.name}; learning rates were chosen on a part of the labelled train images."
    )
    page = html.write_page(folder / "index.html", f"Fine-tuning {workdir.name}", [note, *tables, "# Curves", curves])
    print("\n" + "\n\n".join(block.as_text() for block in tables) + f"\n\n{note}\nreport: {page}")
