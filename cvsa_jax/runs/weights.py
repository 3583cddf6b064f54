"""Weights of others in, and ours out."""

import subprocess
from pathlib import Path

import cvsa_jax
from cvsa_jax.report.card import model_card
from cvsa_jax.runtime.config_files import write_settings
from cvsa_jax.runtime.distributed import make_mesh
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.runtime.files import (
    AnyPath,
    as_path,
    output_file,
    output_folder,
    read_json,
    write_atomically,
    write_text_atomically,
)
from cvsa_jax.weights import export, files, frozen, look_file
from cvsa_jax.weights.nets import architecture


def import_file(origin: str, out: str, net: str = "") -> None:
    """Writes the backbone of a file of weights of any kind to `out`, a .safetensors file under torchvision's names.

    Raises:
        UserError: there is no such file, or no network in it that is meant.
    """
    path = as_path(origin)
    if not path.is_file():
        export_it = f"it is a folder; of a run: python -m cvsa_jax.weights export --run={origin}"
        raise UserError(f"--from={origin}: {export_it if path.is_dir() else 'there is no such file'}")
    target = output_file("--out", out, ".safetensors")
    weights = files.read(path, net)
    looks = architecture(weights.tensors)
    about = weights.metadata | {"format": "pt", "about": f"{path.name}: {weights.about}"}
    about |= {"padding": weights.padding} if weights.padding else {}
    from safetensors.numpy import save

    write_atomically(target, lambda file: file.write(save(weights.tensors, about)))
    print(f"{path}: {weights.about}")
    print(f"{out}: {len(weights.tensors)} tensors, {looks.in_words}")
    stem = " --config.model.stem=small" if looks.stem == "small" else ""
    padding = f" --config.model.padding={weights.padding}" if weights.padding == "same" else ""
    print(
        f"train from it: --config.init_from={out} --config.model.depth={looks.depth} --config.model.width="
        f"{looks.width}{stem}{padding}"
    )


def export_run(run: str, out: AnyPath, formats: tuple[str, ...], licence: str, look: str = "") -> None:
    """Writes the backbone of a run, or of a file, to the folder `out`: the formats, preprocess.json, and the model card
    README.md with the run's config.json. `look`: file of a look head, which then pools the features.

    Raises:
        UserError: there is no such run or file, a format is not known, or the head is another network's.
    """
    export.check(formats)
    if look and "npz" in formats:
        raise UserError("--look: a head goes into safetensors, stablehlo and onnx; leave npz out of --formats")
    network = frozen.load(run, make_mesh())
    head = look_file.of_network(look, network.network, run) if look else None
    about_head = look_file.read(look)[1] if look else None
    output_folder("--out", out)
    written = export.write(network, network.spec(), out, formats, head, about_head)
    data, figures = (_of_run(run, name) for name in ("data.json", "report/results.json"))
    if "mode" in network.config:
        write_settings(network.config, out / "config.json")
    told = {"data": data, "figures": figures, "licence": licence, "version": _version()}
    if about_head is not None:
        told["look"] = look_file.facts(about_head)
    write_text_atomically(out / "README.md", model_card(network, written.files, len(written.tensors), **told))
    kinds = (f"model.{kind}" for kind in export.FORMATS)
    if others := [name for name in kinds if name not in written.files and (out / name).is_file()]:
        print(f"warning: {', '.join(others)} in {out} is of an earlier export; README.md does not describe it")
    print(f"{out}: {', '.join(written.files)} and the model card README.md; {len(written.tensors)} tensors")


def _of_run(run: str, name: str) -> dict:
    path = as_path(run) / name
    return read_json(path) if path.is_file() else {}


def _version() -> str:
    """That of this program, with the commit where it runs from a checkout."""
    folder = Path(cvsa_jax.__file__).parent
    ask = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    if not (folder.parent / ".git").exists():
        return cvsa_jax.__version__
    told = subprocess.run(ask, capture_output=True, text=True, check=False)
    return f"{cvsa_jax.__version__} ({told.stdout.strip()})"
