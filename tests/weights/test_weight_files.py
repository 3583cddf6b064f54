"""Files of weights of every family: the right network is taken, and what cannot be right is refused."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from support.torch_files import Instance, Named, namespace, torch_save, torch_weights, write

from cvsa_jax.runs.weights import import_file
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.weights import files, unpickler

RIGHT, WRONG = torch_weights(18, 8), torch_weights(18, 8, seed=1)
BACKBONE = {n: a for n, a in RIGHT.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
LITTLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def below(prefix: str, weights=RIGHT) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in weights.items()}


def numbered(prefix: str, weights=RIGHT) -> dict[str, np.ndarray]:
    """As `nn.Sequential(*list(resnet.children())[:-1])` names them."""
    number = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    parts = {name: name.partition(".") for name in weights if not name.startswith("fc.")}
    return {f"{prefix}{number[first]}.{rest}": weights[name] for name, (first, _, rest) in parts.items()}


def of_transformers(weights=RIGHT) -> dict[str, np.ndarray]:
    """As transformers' `ResNetForImageClassification` names them."""
    named = {}
    for name, array in weights.items():
        *path, leaf = name.split(".")
        if path[0] == "fc":
            named[f"classifier.1.{leaf}"] = array
        elif len(path) == 1:
            named[f"resnet.embedder.embedder.{'convolution' if path[0] == 'conv1' else 'normalization'}.{leaf}"] = array
        else:
            block = f"resnet.encoder.stages.{int(path[0][-1]) - 1}.layers.{path[1]}"
            if path[2] == "downsample":
                part = "shortcut." + ("convolution", "normalization")[int(path[3])]
            else:
                kind = "convolution" if path[2].startswith("conv") else "normalization"
                part = f"layer.{int(path[2][-1]) - 1}.{kind}"
            named[f"{block}.{part}.{leaf}"] = array
    return named


HEAD = {"fc.0.weight": LITTLE, "fc.2.weight": LITTLE}
OPTIMIZER = {"optimizer": {"state": {0: {"momentum_buffer": LITTLE}}, "param_groups": [{"lr": 0.1}]}}
LIVE = Instance(Named("lightly_train._models", "Wrapper"), {"_modules": {}, "weight": LITTLE})
CONFIG = Instance(Named("omegaconf.listconfig", "ListConfig"), {"_content": [1, 2]})
# Row of the table: file name, what it holds, and the label of the network that is taken.
FAMILIES = {
    "torchvision": ("resnet50-0676ba61.pth", RIGHT, "top level"),
    "timm, training": (
        "model_best.pth.tar",
        {"state_dict": below("module.", WRONG), "state_dict_ema": below("module."), "args": namespace(lr=0.1)},
        "state_dict_ema/module.",
    ),
    "MoCo v2": (
        "moco_v2_800ep_pretrain.pth.tar",
        {"epoch": 800, "arch": "resnet50", "state_dict": below("module.encoder_k.", WRONG) | below("module.encoder_q.")
         | {"module.queue": LITTLE, "module.queue_ptr": np.zeros(1, np.int64)}} | OPTIMIZER,
        "state_dict/module.encoder_q.",
    ),
    "MoCo v3": (
        "r-50-1000ep.pth.tar",
        {"state_dict": below("module.momentum_encoder.", WRONG) | below("module.base_encoder.")
         | {"module.predictor.0.weight": LITTLE}, "scaler": {"scale": 65536.0}} | OPTIMIZER,
        "state_dict/module.base_encoder.",
    ),
    "SimSiam": (
        "checkpoint_0099.pth.tar",
        {"state_dict": below("module.encoder.") | {"module.predictor.0.weight": LITTLE}},
        "state_dict/module.encoder.",
    ),
    "SwAV": (
        "swav_800ep_pretrain.pth.tar",
        below("module.") | {"module.projection_head.0.weight": LITTLE, "module.prototypes.weight": LITTLE},
        "module.",
    ),
    "Barlow Twins": (
        "checkpoint.pth",
        {"epoch": 1, "model": below("module.backbone.") | {"module.projector.0.weight": LITTLE}} | OPTIMIZER,
        "model/module.backbone.",
    ),
    "DINO, full": (
        "dino_resnet50_pretrain_full_checkpoint.pth",
        {"student": below("module.backbone.", WRONG) | {"module.head.last_layer.weight_g": LITTLE},
         "teacher": below("backbone.") | {"head.last_layer.weight_g": LITTLE}, "args": namespace(arch="resnet50"),
         "dino_loss": {"center": LITTLE}} | OPTIMIZER,
        "teacher/backbone.",
    ),
    "DINO, within one dictionary": (
        "checkpoint.pth",
        {"model": below("module.student_backbone.", WRONG) | below("module.teacher_backbone.")
         | {"module.student_head.last_layer.weight": LITTLE}},
        "model/module.teacher_backbone.",
    ),
    "solo-learn": (
        "byol-cifar-ep=99.ckpt",
        {"state_dict": below("momentum_backbone.", WRONG) | below("backbone.") | {"classifier.weight": LITTLE},
         "hyper_parameters": {"devices": CONFIG}, "pytorch-lightning_version": "2.0"},
        "state_dict/backbone.",
    ),
    "lightly, BYOL": (
        "last.ckpt", {"state_dict": below("backbone.") | below("teacher_backbone.", WRONG)}, "state_dict/backbone.",
    ),
    "lightly, MoCo": (
        "last.ckpt", {"state_dict": below("key_backbone.", WRONG) | below("backbone.")}, "state_dict/backbone.",
    ),
    "lightly, DINO": (
        "last.ckpt", {"state_dict": below("student_backbone.", WRONG) | below("backbone.")}, "state_dict/backbone.",
    ),
    "lightly, tutorial": (
        "model.ckpt",
        {"state_dict": numbered("backbone_momentum.", WRONG) | numbered("backbone.")},
        "state_dict/backbone.",
    ),
    "LightlyTrain": ("last.ckpt", {"state_dict": below("model."), "callbacks": {"x": LIVE}}, "state_dict/model."),
    "mmpretrain": (
        "byol_resnet50_16xb256.pth",
        {"state_dict": below("target_net.module.0.", WRONG) | below("backbone.") | {"neck.fc.weight": LITTLE},
         "meta": {"epoch": 1}},
        "state_dict/backbone.",
    ),
    "mmselfsup 0.x": (
        "byol.pth",
        {"state_dict": below("backbone.") | below("online_net.0.") | below("target_net.0.", WRONG)},
        "state_dict/backbone.",
    ),
    "VISSL": (
        "model_final_checkpoint_phase199.torch",
        {"classy_state_dict": {"base_model": {"model": {"trunk": below("_feature_blocks."), "heads": {"w": LITTLE}}}}},
        "classy_state_dict/base_model/model/trunk/_feature_blocks.",
    ),
    "SimCore": (
        "last.pth",
        {"model": below("backbone.") | below("online_encoder.net.") | below("online_net.0.net.")
         | below("target_encoder.net.", WRONG), "args": namespace(epochs=1)},
        "model/backbone.",
    ),
    "CMC": ("resnet50_cmc.pth", {"model": below("module.encoder1.")}, "model/module.encoder1."),
    "compiled": ("net.pt", {"net": below("module._orig_mod.")}, "net/module._orig_mod."),
    "transformers": ("pytorch_model.bin", of_transformers(), "resnet."),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "legacy"),
    [pytest.param(family, False, id=family) for family in FAMILIES] + [pytest.param("MoCo v2", True, id="legacy")],
)
def test_backbone_of_each_family_is_read(tmp_path, family, legacy):
    name, tree, label = FAMILIES[family]
    weights = files.read(torch_save(tmp_path / name, tree, legacy))
    assert weights.tensors.keys() - BACKBONE.keys() <= {n for n in RIGHT if n.endswith("num_batches_tracked")}
    for tensor, array in BACKBONE.items():
        np.testing.assert_array_equal(weights.tensors[tensor], array, err_msg=tensor)
    assert weights.about.startswith(f"network {label}") and weights.padding is None


def test_left_out_tensors_are_reported(tmp_path):
    tree = {"state_dict": below("module.encoder_q.") | {"module.queue": LITTLE, "module.encoder_q.fc.2.bias": LITTLE}}
    about = files.read(torch_save(tmp_path / "w.pth", tree)).about
    assert about == "network state_dict/module.encoder_q.; left out: 3 of module.encoder_q.fc, 1 of module.queue"
    about = files.read(torch_save(tmp_path / "w.pth", below("backbone.") | below("online_net.0."))).about
    assert about.startswith("network backbone. (the same numbers as online_net.0.); left out: ")


@pytest.mark.parametrize("first", ["follower", "leader"])
@pytest.mark.parametrize(
    ("leader", "follower"),
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("online_encoder.", "target_encoder."),
        ("encoder.", "momentum_encoder."),
        ("student.backbone.", "teacher.backbone."),
        ("", "ema_model."),
    ],
)
def test_trained_network_is_preferred_to_its_moving_average(tmp_path, leader, follower, first):
    wanted, other = below(leader), below(follower, WRONG)
    both = other | wanted if first == "follower" else wanted | other
    read = files.read(write(tmp_path / "w.npz", both))
    np.testing.assert_array_equal(read.tensors["conv1.weight"], RIGHT["conv1.weight"])


def test_moving_average_alone_is_read(tmp_path):
    read = files.read(write(tmp_path / "w.npz", below("teacher.")))
    np.testing.assert_array_equal(read.tensors["conv1.weight"], RIGHT["conv1.weight"])


@pytest.mark.parametrize("prefixes", [("left.", "right."), ("teacher.", "target.")])
def test_ambiguous_networks_are_refused_unless_the_user_chooses(tmp_path, prefixes):
    path = write(tmp_path / "w.npz", below(prefixes[0]) | below(prefixes[1], WRONG))
    with pytest.raises(
        UserError, match=rf"w\.npz: it holds several ResNets that differ: {prefixes[0]}, {prefixes[1]}\. Take"
    ):
        files.read(path)
    # And the user decides.
    np.testing.assert_array_equal(files.read(path, prefixes[1]).tensors["bn1.bias"], WRONG["bn1.bias"])
    np.testing.assert_array_equal(files.read(path, prefixes[0][:-1]).tensors["bn1.bias"], RIGHT["bn1.bias"])
    with pytest.raises(UserError, match=r"--net=up is none of its networks: "):
        files.read(path, "up")


def test_networks_that_differ_in_one_number_are_ambiguous(tmp_path):
    other = {name: array.copy() for name, array in RIGHT.items()}
    other["layer4.1.bn2.running_var"][-1] += 1e-6
    path = write(tmp_path / "w.npz", below("left.") | below("right.", other))
    with pytest.raises(UserError, match="several ResNets that differ"):
        files.read(path)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({f"blocks.{i}.attn.qkv.weight": LITTLE for i in range(7)}, r"no ResNet .*it has blocks\.0\.attn.* and 2 more"),
        (below("", torch_weights(18, 8, stem=3)), "a 3x3 stem, as networks for CIFAR"),
        ({n.replace("conv1.", "conv1.0.") if n.startswith("conv1.") else n: a for n, a in RIGHT.items()}, "a deep one"),
        (below("backbone.") | {"conv16.weight": LITTLE, "bn16.weight": LITTLE}, "LCR's, whose ResNet has no max-pool"),
        (
            Instance(Named("torchvision.models.resnet", "ResNet"), {"_modules": {}}),
            r"object \(torchvision\.models.*ResNet\)",
        ),
        ({"model": Instance(Named("my", "Net"), {})}, r"pickled objects \(my\.Net\) and no tensors"),
        (RIGHT | {"layer1.0.se.fc1.weight": LITTLE}, r"no plain ResNet: it also has layer1\.0\.se\.fc1\.weight"),
        (RIGHT | {"layer1.0.conv1.bias": LITTLE}, r"no plain ResNet: it also has layer1\.0\.conv1\.bias"),
        (RIGHT | {"conv1.weight": np.zeros((8, 3, 7, 7), np.int64)}, r"whole numbers \(conv1\.weight\)"),
        (RIGHT | {"bn1.bias": np.full(8, np.nan, np.float32)}, r"NaN or Inf in bn1\.bias"),
        ([1, 2], "no tensors by name"),
        ({}, "no tensors by name"),
    ],
    ids=[
        "transformer",
        "small stem",
        "deep stem",
        "LCR",
        "pickled network",
        "pickled networks",
        "squeeze and excitation",
        "bias of a convolution",
        "whole numbers",
        "NaN",
        "list",
        "empty",
    ],
)
def test_unsuitable_file_is_refused_with_the_reason(tmp_path, tree, said):
    with pytest.raises(UserError, match=rf"w\.pth: .*{said}"):
        files.read(torch_save(tmp_path / "w.pth", tree))


def test_half_precision_is_read(tmp_path):
    halves = {name: w.astype(np.float16) if w.dtype == np.float32 else w for name, w in RIGHT.items()}
    read = files.read(torch_save(tmp_path / "w.pth", halves))
    np.testing.assert_array_equal(read.tensors["bn1.bias"], halves["bn1.bias"])
    # NumPy has no bfloat16 of its own, so here the file is put together by hand.
    path, brain = tmp_path / "half.safetensors", RIGHT["bn1.bias"].astype(ml_dtypes.bfloat16)
    header = {"bn1.bias": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}
    header |= {name: {"dtype": "BF16", "shape": [0], "data_offsets": [16, 16]} for name in ("conv1.weight",)}
    header["layer1.0.conv1.weight"] = header["conv1.weight"]
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + brain.tobytes())
    np.testing.assert_array_equal(files.read(path).tensors["bn1.bias"].astype(np.float32), brain.astype(np.float32))


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth", "legacy.pth"])
@pytest.mark.parametrize("content", ["empty", "cut", "cut at the end", "other"])
def test_broken_file_is_named(tmp_path, kind, content):
    path = tmp_path / f"weights.{kind}"
    if kind.endswith("pth"):
        torch_save(path, RIGHT, kind.startswith("legacy"))
    else:
        write(path, RIGHT)
    whole = path.read_bytes()
    broken = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "cut at the end": whole[:-9],
        "other": b"<html>not found</html>",
    }
    path.write_bytes(broken[content])
    with pytest.raises(UserError, match=rf"weights\.{kind}: \S"):
        files.read(path)


def test_suffix_does_not_matter(tmp_path):
    path = torch_save(tmp_path / "weights.safetensors.bak", RIGHT)
    np.testing.assert_array_equal(files.read(path).tensors["bn1.bias"], RIGHT["bn1.bias"])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pytorch_reads_and_writes_the_same_files(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="compared where PyTorch is installed, which nothing else needs")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in RIGHT.items()}
    tensors["conv1.weight"] = torch.nn.Parameter(tensors["conv1.weight"].transpose(2, 3))  # a view in another order
    tensors["layer1.0.conv1.weight"] = torch.arange(2 * 576.0).reshape(2, 8, 8, 3, 3)[1]  # in the middle of a storage
    tree = {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "epoch": 3}
    torch.save(tree, tmp_path / "theirs.pth", _use_new_zipfile_serialization=not legacy)
    read = files.read(tmp_path / "theirs.pth").tensors
    for name in BACKBONE:
        np.testing.assert_array_equal(read[name], tensors[name].detach().numpy(), err_msg=name)
    # And the files of these tests are what PyTorch's are.
    loaded = torch.load(torch_save(tmp_path / "ours.pth", {"state_dict": RIGHT}, legacy), weights_only=True)
    for name, array in RIGHT.items():
        np.testing.assert_array_equal(loaded["state_dict"][name].numpy(), array, err_msg=name)


# DeepMind's BYOL.


def haiku(weights: dict[str, np.ndarray], of: str = "res_net18") -> tuple[dict, dict]:
    """Parameters and state under Haiku's names, kernel by kernel."""
    params, state = {f"{of}/~/x": {}, "projector/linear": {"w": LITTLE}}, {}
    del params[f"{of}/~/x"]
    for name, array in weights.items():
        *path, leaf = name.split(".")
        if path[0] == "fc" or leaf == "num_batches_tracked":
            continue
        place = f"{of}/~/" if len(path) == 1 else f"{of}/~/block_group_{int(path[0][-1]) - 1}/~/block_{path[1]}/~/"
        part = path[0] if len(path) == 1 else ".".join(path[2:])
        kind = {"conv1": "initial_conv", "bn1": "initial_batchnorm"}.get(part) if len(path) == 1 else None
        kind = kind or {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_batchnorm"}.get(part)
        kind = kind or f"{'conv' if part.startswith('conv') else 'batchnorm'}_{int(part[-1]) - 1}"
        wide = array.reshape(1, 1, 1, -1)
        if leaf.startswith("running_"):
            zero = {"hidden": 0 * wide, "average": wide, "counter": np.array(3)}
            state[f"{place}{kind}/~/{leaf.removeprefix('running_')}_ema"] = zero
        elif array.ndim == 4:
            params[place + kind] = {"w": array.transpose(2, 3, 1, 0)}
        else:
            params.setdefault(place + kind, {})[{"weight": "scale", "bias": "offset"}[leaf]] = wide
    return params, state


def of_numpy(tree):
    """Arrays as NumPy itself pickles them, in the old words of its version 1."""
    if isinstance(tree, dict):
        return {key: of_numpy(value) for key, value in tree.items()}
    dtype = Instance(Named("numpy", "dtype"), (3, "<", None, None, None, -1, -1, 0), (tree.dtype.str[1:], False, True))
    state = (1, tree.shape, dtype, False, np.ascontiguousarray(tree).tobytes())
    start = (Named("numpy", "ndarray"), (0,), b"b")
    return Instance(Named("numpy.core.multiarray", "_reconstruct"), state, start)


@pytest.mark.parametrize("named_tuple", [True, False], ids=["named tuple", "dictionary"])
def test_deepmind_checkpoint_is_read_and_imported(tmp_path, named_tuple, monkeypatch):
    # Their arrays are strings that a call turns into bytes: of half a gigabyte, and yet not too many.
    monkeypatch.setattr(unpickler, "_SPARE", 0)
    from support.torch_files import Pickler

    parts = {"online_params": 0, "target_params": 1, "online_state": 2, "target_state": 3, "opt_state": 4}
    values = [of_numpy(tree) for pair in zip(haiku(RIGHT), haiku(WRONG), strict=True) for tree in pair] + [None]
    state = dict(zip(parts, values, strict=True))
    if named_tuple:
        state = Instance(Named("byol.byol_experiment", "_ByolExperimentState"), None, tuple(values))
    path = tmp_path / "pretrain_res50x1.pkl"
    with path.open("wb") as file:
        Pickler(file).dump({"experiment_state": state, "step": 3, "rng": of_numpy(np.zeros(2, np.uint32))})
    read = files.read(path)
    assert read.padding == "same"
    assert read.tensors.keys() == BACKBONE.keys()
    for name, array in BACKBONE.items():
        np.testing.assert_array_equal(read.tensors[name], array, err_msg=name)
    assert read.about == "network experiment_state/online; left out: 1 of projector"
    import_file(str(path), str(tmp_path / "ours.safetensors"))
    ours = files.read(tmp_path / "ours.safetensors")
    assert ours.padding == "same" and ours.tensors.keys() == BACKBONE.keys()
    for name, array in BACKBONE.items():
        np.testing.assert_array_equal(ours.tensors[name], array, err_msg=name)


def test_import_keeps_arrays_in_fortran_order(tmp_path):
    np.savez(tmp_path / "x.npz", **{name: np.asfortranarray(array) for name, array in BACKBONE.items()})
    import_file(str(tmp_path / "x.npz"), str(tmp_path / "ours.safetensors"))
    for name, array in files.read(tmp_path / "ours.safetensors").tensors.items():
        np.testing.assert_array_equal(array, BACKBONE[name], err_msg=name)
