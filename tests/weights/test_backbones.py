"""Where a backbone comes from, and pre-training that starts from a file of weights."""

import functools
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.compiling import few_devices
from support.torch_files import torch_weights, write

from configs import demo
from cvsa_jax import settings
from cvsa_jax.runs import pretrain
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.training import checkpoint
from cvsa_jax.training.checkpoint import Checkpointer
from cvsa_jax.training.resume import write_config
from cvsa_jax.training.state import init_state, initial_target
from cvsa_jax.weights import backbones

# Of a ResNet-8: a stem and three blocks of two convolutions, two of them with a shortcut; each has a kernel and a
# normalisation of four tensors.
TENSORS = 5 * (1 + 3 * 2 + 2)


@pytest.fixture(scope="module", autouse=True)
def small_runs(quick_compilation):
    with few_devices(1, pretrain):
        yield


def tiny():
    """BYOL on a budget of seconds; at a rate of 0 a run ends with what it started from."""
    config = demo.get_config("byol")
    config.data.procedural.update(classes=3, train_per_class=7, test_per_class=5, size=32)
    config.views.size = config.eval.size = config.eval.resize = 32
    config.model.update(width=4, head_hidden=16, head_out=8)
    config.batch_size, config.total_steps, config.optim.warmup_steps, config.optim.lr = 8, 3, 1, 0.0
    config.log_steps, config.checkpoint_steps, config.watch.knn_steps = 1, 2, 0
    return config


def numpy_of(tree):
    # Copies: the step donates its state's buffers, and an array of NumPy may be a view of them.
    return jax.tree.map(np.array, tree)


def assert_equal_trees(a, b, **tolerance):
    for (path, x), (_, y) in zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b), strict=True):
        np.testing.assert_allclose(x, y, **({"rtol": 0} | tolerance), err_msg=jax.tree_util.keystr(path))


def in_our_layout(weights: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """Parameters and batch statistics of a ResNet-8, put together tensor by tensor."""
    convs = {"stem_conv": "conv1"}
    norms = {"stem_bn": "bn1"}
    for stage in (1, 2, 3):
        for part in ("conv1", "conv2", *(("downsample_conv",) if stage > 1 else ())):
            there = f"layer{stage}.0.{part.replace('downsample_conv', 'downsample.0')}"
            convs[f"stage{stage}_block1/{part}"] = there
            ours = part.replace("conv1", "bn1").replace("conv2", "bn2").replace("_conv", "_bn")
            norms[f"stage{stage}_block1/{ours}"] = there.replace("conv", "bn").replace("downsample.0", "downsample.1")
    params, stats = {}, {}
    for ours, there in convs.items():
        put(params, f"{ours}/kernel", np.moveaxis(weights[f"{there}.weight"], (0, 1), (3, 2)))
    for ours, there in norms.items():
        put(params, f"{ours}/scale", weights[f"{there}.weight"])
        put(params, f"{ours}/bias", weights[f"{there}.bias"])
        put(stats, f"{ours}/mean", weights[f"{there}.running_mean"])
        put(stats, f"{ours}/var", weights[f"{there}.running_var"])
    return params, stats


def put(tree: dict, path: str, value: np.ndarray):
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = value


WEIGHTS = torch_weights(8, 4, stem=3)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("weights") / "resnet.npz", WEIGHTS)


@pytest.fixture(scope="module")
def first_state(tmp_path_factory, weights_file):
    """The state before the first step of a run from the weights file."""
    states = []

    class Enough(Exception):
        pass

    def run_steps(run, *args, **kwargs):
        states.append(numpy_of(run.state))
        raise Enough  # before anything of the step is compiled

    config = tiny()
    config.init_from = str(weights_file)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(pretrain, "run_steps", run_steps)
        pretrain.train(config, tmp_path_factory.mktemp("pretrained") / "run")
    return states[0]


@functools.cache
def random_start():
    """The state of a run from random weights."""
    config = tiny()
    optimizer, _ = settings.optimizer(config, 21)
    initialize = functools.partial(init_state, settings.model(config.model), optimizer, 32, classes=3)
    return numpy_of(jax.jit(initialize)(jax.random.key(config.seed)))


def test_pretraining_from_a_file_starts_both_backbones_from_it(first_state):
    state = first_state
    params, stats = in_our_layout(WEIGHTS)
    assert state.step == 0
    for network in (state.online, state.target):
        assert_equal_trees(network.params["backbone"], params)
        assert_equal_trees(network.batch_stats["backbone"], stats)


def test_pretraining_from_a_file_has_random_heads(first_state):
    state = first_state
    fresh = random_start()
    heads = lambda tree: {name: part for name, part in tree.items() if name != "backbone"}  # noqa: E731
    # Those of a run from scratch with this seed.
    for network, other in ((state.online, fresh.online), (state.target, fresh.target)):
        assert_equal_trees(heads(network.params), heads(other.params), rtol=1e-6, atol=1e-7)
        assert_equal_trees(heads(network.batch_stats), heads(other.batch_stats))
    assert set(state.target.params) == {"backbone", "projector", "conv_projector"}
    kernels = [p for p in jax.tree.leaves(heads(state.online.params)) if p.ndim == 2]
    assert len(kernels) == 8 and all(kernel.std() > 0.01 for kernel in kernels)
    assert_equal_trees(state.opt_state, fresh.opt_state)


@pytest.mark.slow
def test_pretraining_from_a_file_at_rate_0_keeps_its_weights(tmp_path, weights_file, mesh_of, monkeypatch):
    config, workdir = tiny(), tmp_path / "run"
    config.init_from = str(weights_file)
    monkeypatch.setattr(pretrain, "report_run", lambda *args, **kwargs: {})  # half of the time, and not the matter here
    pretrain.train(config, workdir)
    params, stats = in_our_layout(WEIGHTS)
    network, step = checkpoint.restore_online(workdir, random_start().online, mesh_of(2))
    assert step == 3
    assert_equal_trees(network.params["backbone"], params)
    # It did train: batch statistics follow the images whatever the rate.
    assert np.abs(network.batch_stats["backbone"]["stem_bn"]["mean"] - stats["stem_bn"]["mean"]).max() > 1e-3


def test_objective_without_target_starts_only_the_online_network(weights_file, mesh_of):
    like = random_start().replace(target=None)
    network = backbones.load_file(weights_file, settings.model(tiny().model), mesh_of(1))
    state = like.starting_from(like.online.with_parts(network))
    assert state.target is None
    assert_equal_trees(state.online.params["backbone"], in_our_layout(WEIGHTS)[0])


def test_target_has_its_own_buffers(weights_file, mesh_of):
    # The step donates those of the online network.
    network = backbones.load_file(weights_file, settings.model(tiny().model), mesh_of(1))
    state = random_start()
    state = state.starting_from(state.online.with_parts(network))
    target = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.target.params["backbone"])}
    online = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.online.params["backbone"])}
    assert len(target) == len(online) and not target & online


def test_file_is_placed_on_the_mesh_and_its_tensors_counted(weights_file, mesh_of, capsys):
    model, network, origin = backbones.load(str(weights_file), tiny().model, mesh_of(2))
    assert (model, origin) == (tiny().model, str(weights_file))
    assert network.params.keys() == network.batch_stats.keys() == {"backbone"}
    params, stats = in_our_layout(WEIGHTS)
    assert_equal_trees(network.params["backbone"], params)
    assert_equal_trees(network.batch_stats["backbone"], stats)
    assert all(leaf.sharding.device_set == set(jax.devices()[:2]) for leaf in jax.tree.leaves(network))
    told = f"{weights_file}: network top level; left out: 2 of fc\n"
    assert capsys.readouterr().out == f"{told}loaded {TENSORS}/{TENSORS} backbone tensors of {weights_file}\n"


def test_empty_name_means_random_weights(mesh_of, capsys):
    model, network, origin = backbones.load("", tiny().model, mesh_of(1))
    assert (model, network, origin) == (tiny().model, None, "random weights")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fault", "name", "tensor"),
    [
        ("missing", "layer2.0.bn1.running_var", "batch_stats/backbone/stage2_block1/bn1/var"),
        ("of another shape", "layer3.0.downsample.0.weight", "params/backbone/stage3_block1/downsample_conv/kernel"),
    ],
    ids=["missing", "of another shape"],
)
def test_incomplete_file_is_refused_with_the_tensor(tmp_path, mesh_of, capsys, fault, name, tensor):
    weights = dict(WEIGHTS)
    if fault == "missing":
        del weights[name]
    else:
        weights[name] = np.concatenate([weights[name], weights[name]])
    path = write(tmp_path / "weights.npz", weights)
    with pytest.raises(UserError, match=rf"^{path} is not of the architecture of config\.model: {tensor} is missing"):
        backbones.load_file(path, settings.model(tiny().model), mesh_of(1))
    assert f"loaded {TENSORS - 1}/{TENSORS} backbone tensors" in capsys.readouterr().out


def test_file_of_a_deeper_network_is_refused_with_the_surplus(tmp_path, mesh_of, capsys):
    path = write(tmp_path / "weights.npz", torch_weights(18, 4))
    with pytest.raises(UserError, match=r"/backbone/stage1_block2/bn1/.*or too much.*looks like depth 18 .*a 7x7 stem"):
        backbones.load_file(path, settings.model(tiny().model), mesh_of(1))
    # All that the model has is there, but for the stem, and yet it is another network.
    assert f"loaded {TENSORS - 1}/{TENSORS} backbone tensors" in capsys.readouterr().out


@pytest.mark.parametrize(("width", "stem"), [(8, 3), (4, 7)], ids=["width", "stem"])
def test_file_of_another_architecture_names_the_keys_to_set(tmp_path, mesh_of, width, stem):
    path = write(tmp_path / "w.npz", torch_weights(8, width, stem=stem))
    looks = rf"looks like depth 8 \(blocks 1, 1, 1\), width {width}, a {stem}x{stem} stem\. Set"
    with pytest.raises(UserError, match=rf"{looks} config\.model\.depth, width and stem"):
        backbones.load_file(path, settings.model(tiny().model), mesh_of(1))


@pytest.mark.parametrize(("file", "model"), [("same", "symmetric"), ("symmetric", "same")])
def test_padding_of_a_file_must_be_that_of_the_model(tmp_path, mesh_of, file, model):
    path, config = tmp_path / "w.safetensors", tiny().model
    save_file(torch_weights(8, 4, stem=3), path, {"padding": file, "stem": "small"})
    config.padding = model
    with pytest.raises(UserError, match=rf"whose padding is '{file}': set config\.model\.padding to it"):
        backbones.load_file(path, settings.model(config), mesh_of(1))
    config.padding = file
    backbones.load_file(path, settings.model(config), mesh_of(1))


def test_pretraining_from_a_file_of_another_network_is_refused(tmp_path):
    config = tiny()
    config.init_from = str(write(tmp_path / "weights.npz", torch_weights(18, 4)))
    with pytest.raises(UserError, match=r"weights\.npz is not of the architecture of config\.model"):
        pretrain.train(config, tmp_path / "run")


@pytest.fixture(scope="module")
def other_target(tmp_path_factory, mesh_of):
    """(workdir, state) of a run whose target network is not its online network."""
    workdir = tmp_path_factory.mktemp("by_hand") / "run"
    state = random_start()
    target = initial_target(jax.tree.map(lambda x: x + 1, state.online))
    state = state.replace(target=target, step=np.int32(7))
    checkpoints = Checkpointer(workdir)
    checkpoints.save(jax.device_put(state, jax.devices()[0]), {})
    checkpoints.close()
    write_config(tiny(), workdir)
    return workdir, state


def test_run_provides_its_online_backbone_and_architecture(other_target, mesh_of, capsys):
    workdir, state = other_target
    given = tiny().model
    given.width = 64
    model, network, origin = backbones.load(str(workdir), given, mesh_of(2))
    assert model.to_dict() == tiny().model.to_dict()
    assert origin == f"{workdir} at step 7"
    assert network.params.keys() == network.batch_stats.keys() == {"backbone"}
    assert_equal_trees(network.params["backbone"], state.online.params["backbone"])
    assert_equal_trees(network.batch_stats["backbone"], state.online.batch_stats["backbone"])
    assert all(leaf.sharding.device_set == set(jax.devices()[:2]) for leaf in jax.tree.leaves(network))
    assert f"loaded {TENSORS}/{TENSORS} backbone tensors of {workdir}, step 7\n" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["finetune", "saliency_unet"])
def test_run_of_another_mode_is_refused(tmp_path, other_target, mesh_of, mode):
    workdir = shutil.copytree(other_target[0], tmp_path / "run")
    edit(workdir, lambda config: config.update(mode=mode))
    with pytest.raises(UserError, match=rf"is a run of mode '{mode}': a pre-training run is needed"):
        backbones.load(str(workdir), tiny().model, mesh_of(1))


def test_path_without_a_run_is_refused(tmp_path, mesh_of):
    for path, why in (
        (tmp_path, rf"there is no {tmp_path}/config\.json"),
        (tmp_path / "a.npz", "there is no such file or folder"),
    ):
        with pytest.raises(UserError, match=rf"^'{path}' is not the workdir of a run: {why}"):
            backbones.load(str(path), tiny().model, mesh_of(1))


def test_run_without_a_checkpoint_is_refused(tmp_path, mesh_of):
    write_config(tiny(), tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        backbones.load(str(tmp_path), tiny().model, mesh_of(1))


def test_run_whose_config_contradicts_its_weights_is_refused_with_the_tensor(tmp_path, other_target, mesh_of):
    workdir = shutil.copytree(other_target[0], tmp_path / "run")
    edit(workdir, lambda config: config["model"].update(width=8))
    tensor = re.escape("batch_stats/backbone/stage1_block1/bn1/mean is (4,), the model's is (8,)")
    with pytest.raises(UserError, match=tensor):
        backbones.load(str(workdir), tiny().model, mesh_of(1))


def edit(workdir: Path, change):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
