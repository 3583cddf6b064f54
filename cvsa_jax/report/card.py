"""The model card of an exported network."""

from cvsa_jax.report.columns import RECOGNITION, TITLES, percent
from cvsa_jax.weights.frozen import Frozen

_NOTHING = "not recorded"
# File -> how PyTorch loads its tensors.
_LOADED = {
    "model.safetensors": 'safetensors.torch.load_file("model.safetensors")',
    "model.npz": "{k: torch.from_numpy(v) for k, v in numpy.load(\"model.npz\").items() if v.dtype.kind == 'f'}",
}
# File -> what runs it, and how.
_CALLED = {
    "model.stablehlo": (
        "jax",
        ('run = jax.export.deserialize(open("model.stablehlo", "rb").read())', "features = run.call(images)"),
    ),
    "model.onnx": (
        "onnxruntime",
        (
            'session = onnxruntime.InferenceSession("model.onnx")',
            '(features,) = session.run(None, {"images": images})',
        ),
    ),
}
# How PyTorch pools the cells by a look head.
LOOK_POOLING = """\
class LookPooling(torch.nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for name in ("weight", "bias", "power"):
            self.register_buffer(name, tensors[f"look.{name}"])

    def forward(self, cells):  # (b, C, h, w) -> (b, C)
        looked = (torch.einsum("bchw,c->bhw", cells, self.weight) + self.bias).clamp(min=0)
        weights = (looked / looked.amax((1, 2), keepdim=True).clamp(min=1e-12)) ** self.power + 1e-6
        return torch.einsum("bchw,bhw->bc", cells, weights / weights.sum((1, 2), keepdim=True))
"""


def model_card(
    network: Frozen,
    files: list[str],
    tensors: int,
    *,
    data: dict,
    figures: dict,
    licence: str,
    version: str,
    look: dict | None = None,
) -> str:
    """Markdown of what the network is, what it learned from, its figures, and how it is loaded.

    Args:
        data, figures: `data.json` and `report/results.json` of its run, or {}.
        licence: of the weights, as the user says.
        version: of this program.
        look: what the file of the look head says that pools the features, or None.
    """
    model, config = network.model, network.config
    shape = f"ResNet-{model.depth}, width {model.width}, stem {model.stem}, padding {model.padding}"
    known = model.depth in (18, 34, 50) and model.stem == "imagenet" and model.padding == "symmetric"
    plain = known and model.width == 64
    lines = ["---", f"license: {licence}", "tags: [image-feature-extraction, fine-grained, cvsa]", "---", ""]
    lines += [f"# {shape}", "", f"Exported from {network.about} by cvsa_jax {version}; {tensors} tensors.", ""]
    lines += ["## What it learned from", "", *_learned(config, data), ""]
    pooled = bool(figures) and (look is not None or ("mode" in config and config.eval.pooling != "average"))
    shown = {key: figures[key] for key in TITLES if key in figures and not (pooled and key in RECOGNITION)}
    if shown:
        lines += ["## Figures of its run", "", "| figure | % |", "|---|---|"]
        lines += [f"| {TITLES[key]} | {percent(value)} |" for key, value in shown.items()] + [""]
        lines += ["On the run's own data set (above); kNN and localisation by docs/explanation/protocols.md.", ""]
    if look is not None:
        facts = "; ".join(f"{name}: {told}" for name, told in look.items())
        lines += [
            "## Pooling",
            "",
            "A look head, a linear function of a cell that says how much it shows the object, weights the cells. "
            "StableHLO and ONNX files pool by it; a safetensors file holds it beside the network. It learned from "
            f"saliency maps, and from no class labels ({facts}).",
            "",
        ]
    if pooled:
        lines += [
            "The run's recognition figures are not shown: they are of features pooled in another way than those of the "
            "files. `python -m cvsa_jax.evaluate` measures those.",
            "",
        ]
    lines += [
        "## Load it",
        "",
        "Images: `preprocess.json`. Files: " + ", ".join(f"`{name}`" for name in files) + ".",
        "",
    ]
    weights = next((name for name in files if name in _LOADED), None)
    if plain and weights:
        loaded = (
            _LOADED[weights] if look is None else f'{{k: v for k, v in {_LOADED[weights]}.items() if "look." not in k}}'
        )
        head = f"Linear(net.fc.in_features, {len(network.classes)})" if network.classes else "Identity()"
        lines += [
            "```python",
            "# timm",
            f'net = timm.create_model("resnet{model.depth}", num_classes={len(network.classes)})',
            f"net.load_state_dict({loaded})",
            "# torchvision",
            f"net = torchvision.models.resnet{model.depth}()",
            f"net.fc = torch.nn.{head}",
            f"net.load_state_dict({loaded})",
            "```",
            "",
        ]
        if look is not None:
            lines += ["```python", "# pooled by the look head", *LOOK_POOLING.splitlines(), ""]
            lines += ["cells = torch.nn.Sequential(*list(net.children())[:-2])  # of torchvision's"]
            lines += [f"features = LookPooling({_LOADED[weights]})(cells(images))", "```", ""]
    elif not plain:
        why = "its padding is TensorFlow's" if model.padding == "same" else "its shape is none of theirs"
        lines += [f"The names are torchvision's, but timm and torchvision have no such network: {why}.", ""]
    if weights:
        lines += ["```python", "# cvsa_jax"]
        with_head = f', look="{weights}"' if look is not None and weights.endswith(".safetensors") else ""
        lines += [f'features = cvsa_jax.load_backbone("{weights}"{with_head}).features(images)', "```", ""]
    for name in (name for name in files if name in _CALLED):
        lines += ["```python", f"# {_CALLED[name][0]}", *_CALLED[name][1], "```", ""]
    lines += ["## Licence", "", f"{licence}. That of the images it learned from may bind its use as well.", ""]
    return "\n".join(lines)


def _learned(config, data: dict) -> list[str]:
    if "mode" not in config:
        return ["A file of weights; what it learned from is not known here."]
    splits = ", ".join(f"{name} {count}" for name, count in data.get("splits", {}).items())
    told = [f"- Data: {_NOTHING}"]
    if data:
        classes = f"in {data['classes']} classes" if data["classes"] else "without labels"
        counts = f"{data['images']} images {classes} ({splits})"
        told = [f"- Data: {data['name']}, {counts}, fingerprint {data['fingerprint']}"]
    start = config.init_from or "random weights"
    if config.mode == "finetune":
        return [*told, f"- Fine-tuned with labels, from {start}", "- Config: `config.json`"]
    aligned = f", alignment {config.align.form} × {config.align.weight:g}" if config.align.weight > 0 else ""
    told.append(
        f"- Objective: {config.objective} on {config.views.kind}{aligned}, batches of {config.batch_size}; no labels"
    )
    maps = data.get("saliency")
    uses = config.views.kind == "saliency_swap" or config.align.weight > 0
    if uses:
        maps = maps or {"detector": config.saliency.detector, "supervision": _NOTHING}
        told.append(f"- Saliency maps: {maps['detector']}, supervision: {maps['supervision']}")
    return [*told, f"- Started from {start}", "- Config: `config.json`"]
