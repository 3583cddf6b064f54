import importlib
import json
import re
from pathlib import Path

import pytest

from configs import common, folder, sets
from cvsa_jax import losses, settings
from cvsa_jax.data import sources, view_spec
from cvsa_jax.models.resnet import STAGE_SIZES, STEMS
from cvsa_jax.runtime import checks, formats
from cvsa_jax.runtime.config_files import load
from cvsa_jax.runtime.errors import UserError
from cvsa_jax.saliency.unet.step import Geometry
from cvsa_jax.training import optim
from cvsa_jax.training.resume import check_mode, compare_config, flat_config, read_config, write_config

STRIDE = 32
CONFIGS = Path(common.__file__).parent
# Every argument that a file's docstring names, and their combination.
PLAIN = ("", "small", "byol", "moco", "simclr", "simsiam", "moco,cvsa", "small,byol")
PLAIN = (*PLAIN, "gpu8gb", "gpu24gb", "scratch", "byol,gpu8gb")
LARGE = (*PLAIN, "tpu_v4_32")
TUNED = ("", "448", "scratch", "small", "scratch,small")
FEW = {"cub", "aircraft", "cars", "nabirds", "dogs", "pets", "flowers", "food"}
ARGUMENTS = {"demo": ("", "byol", "mask_head", "simclr"), "folder": LARGE, "imagenet": LARGE}
ARGUMENTS |= dict.fromkeys(FEW, PLAIN) | {"inat": (*LARGE, "2021", "mini", "mini,tpu_v4_32")}
ARGUMENTS |= {f"{name}_linear": ("", "full") for name in ("folder", *sets.SETS)}
ARGUMENTS |= {f"{name}_finetune": TUNED for name in ("folder", *sets.SETS)}
SHARED = ("__init__", "common", "recipes", "sets")
FILES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in SHARED)


def config_with(**changes):
    """The default config with other values; a key's dots are written `__`, or as they are in a dict."""
    config = common.pretrain()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(100.0, None, 2341), (0.5, None, 12), (1e-4, None, 1), (100.0, 7, 7)]
)
def test_total_steps_from_epochs_or_steps(epochs, steps, expected):
    config = config_with(total_epochs=epochs, total_steps=steps, batch_size=256)
    assert settings.total_steps(config, 5994) == expected


@pytest.mark.parametrize(
    "changes", [{"optim__warmup_steps": 50}, {"optim__warmup_epochs": 5.0}], ids=["steps", "epochs"]
)
def test_warmup_must_be_shorter_than_the_run(changes):
    with pytest.raises(UserError, match=r"warm-up of \d+ steps .* run of 50.*config\.optim\.warmup_steps"):
        settings.optimizer(config_with(total_steps=50, batch_size=100, **changes), images=1000)


def test_warmup_steps_override_warmup_epochs():
    config = config_with(
        total_steps=50, batch_size=128, optim__warmup_steps=49, optim__warmup_epochs=1e6, optim__lr=0.3
    )
    _, schedule = settings.optimizer(config, images=1000)
    assert float(schedule(49)) == pytest.approx(0.3 * 128 / 256)
    assert float(schedule(50)) == pytest.approx(0, abs=1e-7)


def test_view_spec_takes_values_of_the_config():
    config = config_with(views__size=96, views__source_area=(0.2, 0.2), views__group=3, saliency__threshold=0.25)
    spec = settings.view_spec(config, STRIDE)
    assert (spec.size, spec.source_area, spec.group, spec.kind) == (96, (0.2, 0.2), 3, "saliency_swap")
    assert spec.threshold == 0.25


@pytest.mark.parametrize(
    ("key", "area"),
    [
        pytest.param("source_area", (0.0, 0.5), id="from 0"),
        pytest.param("source_area", (0.5, 1.5), id="above 1"),
        pytest.param("source_area", (0.3,), id="one value"),
        pytest.param("paste_area", (0.5, 0.2), id="falling paste_area"),
        pytest.param("crop_area", (0.5, 0.2), id="falling crop_area"),
    ],
)
def test_invalid_area_ranges_are_refused(key, area):
    with pytest.raises(UserError) as error:
        settings.view_spec(config_with(**{f"views__{key}": area}), STRIDE)
    assert f"config.views.{key}={area}" in str(error.value)


def test_view_size_must_be_a_multiple_of_the_stride():
    with pytest.raises(UserError, match=r"config\.views\.size=100 .* stride 32"):
        settings.view_spec(config_with(views__size=100), STRIDE)


def test_group_must_leave_two_backgrounds():
    with pytest.raises(UserError, match=r"config\.views\.group=2.* 3"):
        settings.view_spec(config_with(views__group=2), STRIDE)


# Key -> (an unknown value, what reads it, the known values).
UNKNOWN = {
    "data.kind": ("imagenet", lambda c: settings.load_source(c.data), sources.KINDS),
    "data.on_bad_image": ("ignore", lambda c: settings.load_source(c.data), ("stop", "skip")),
    "model.depth": (101, lambda c: settings.model(c.model), STAGE_SIZES),
    "model.stem": ("cifar", lambda c: settings.model(c.model), STEMS),
    "model.dtype": ("float16", lambda c: settings.model(c.model), ("float32", "bfloat16")),
    "views.kind": ("swap", lambda c: settings.view_spec(c, STRIDE), view_spec.KINDS),
    "views.paste": ("blend", lambda c: settings.view_spec(c, STRIDE), view_spec.PASTES),
    "views.swapped_views": (3, lambda c: settings.view_spec(c, STRIDE), (1, 2)),
    "align.form": ("kld", lambda c: settings.step_spec(c, 1000), losses.ALIGNMENT_FORMS),
    "optim.name": ("adamw", lambda c: settings.optimizer(c, 1000), optim.OPTIMIZERS),
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_unknown_name_lists_the_allowed_ones(key):
    value, build, allowed = UNKNOWN[key]
    with pytest.raises(UserError) as error:
        build(config_with(**{key: value}))
    assert f"config.{key}={value!r}" in str(error.value)
    assert all(str(name) in str(error.value) for name in allowed)


def test_evaluation_size_and_resize_follow_the_run():
    run, small = config_with(views__size=224), config_with(views__size=64, eval__resize=64)

    def sizes(evaluation, run):
        spec = settings.evaluation(evaluation, run)
        return spec.size, spec.resize

    assert sizes(run.eval, run) == (224, 256)
    assert sizes(common.linear().eval, small) == (64, 64)
    assert sizes(config_with(eval__size=96, eval__resize=128).eval, run) == (96, 128)
    # The run's resize is that of the run's size.
    assert sizes(config_with(eval__size=96).eval, small) == (96, 110)
    assert sizes(config_with(eval__resize=80).eval, small) == (64, 80)
    with pytest.raises(UserError, match=r"config\.eval\.resize=200 .* 224"):
        settings.evaluation(config_with(eval__resize=200).eval, run)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eval.batch_size", 0, r"config\.eval\.batch_size=0 must be at least 1"),
        ("eval.attention", "self", r"config\.eval\.attention='self' is unknown; take one of others, mirror"),
        ("eval.knn", (5, 0), r"config\.eval\.knn=\(5, 0\) must be numbers of neighbours from 1 on"),
        ("eval.knn_temperature", 0.0, r"config\.eval\.knn_temperature=0 must be above 0"),
        ("eval.embedding", "tsne", r"config\.eval\.embedding='tsne' is unknown; take one of pca, umap"),
        ("probe.folds", 0, r"config\.probe\.folds=0 must be at least 1"),
        ("probe.seeds", 0, r"config\.probe\.seeds=0 must be at least 1"),
        ("probe.batch_size", 0, r"config\.probe\.batch_size=0 must be at least 1"),
        ("probe.validation_share", 1.0, r"config\.probe\.validation_share=1 does not lie in \(0, 1\)"),
        ("probe.learning_rates", (0.1, 0.1), r"config\.probe\.learning_rates=\(0\.1, 0\.1\): give different rates"),
    ],
)
def test_invalid_evaluation_names_the_key(key, value, message):
    config = common.linear()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        settings.evaluation(config.eval, common.pretrain())
        settings.knn(config.eval)
        settings.embedding(config.eval)
        settings.probe(config)


def test_unchanged_config_is_accepted(tmp_path):
    workdir = tmp_path / "runs" / "one"
    write_config(config_with(total_steps=5, init_from="runs/stage1"), workdir)
    # No difference, although JSON has turned the tuples into lists.
    assert compare_config(config_with(total_steps=5, init_from="runs/stage1"), workdir) == []


def test_config_survives_writing_and_reading(tmp_path):
    config = config_with(total_steps=5, views__crop_area=(0.3, 0.9), data__root="a b/ü")
    write_config(config, tmp_path)
    read = read_config(str(tmp_path))
    assert json.loads(json.dumps(config.to_dict())) == read.to_dict()
    assert settings.model(read.model) == settings.model(config.model)
    assert settings.evaluation(read.eval, read) == settings.evaluation(config.eval, config)


def test_harmless_changes_are_reported(tmp_path):
    write_config(config_with(), tmp_path)
    changed = config_with(log_steps=7, data__root="elsewhere", optim__lr=0.3, data__test_split="val", total_steps=9)
    assert compare_config(changed, tmp_path) == [
        "data.root:  -> elsewhere",
        "data.test_split: test -> val",
        "log_steps: 10 -> 7",
        "optim.lr: 0.45 -> 0.3",
        "total_steps: None -> 9",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.depth", 18),
        ("batch_size", 128),
        ("views.source_area", (0.1, 0.7)),
        ("seed", 1),
        ("data.kind", "cub"),
        ("data.train_split", "all"),
        ("data.procedural.classes", 13),
        ("optim.name", "adam"),
        ("optim.decay", "all"),
        ("align.weight", 0.5),
        ("target.tau", 0.9),
        ("augment.view1.blur_prob", 0.3),
        ("saliency.detector", "center"),
        ("init_from", "runs/other"),
    ],
)
def test_changes_to_model_or_data_order_are_refused(tmp_path, key, value):
    before = config_with()
    write_config(before, tmp_path)
    for part in key.split("."):
        before = before[part]
    listed = [list(v) if isinstance(v, tuple) else v for v in (before, value)]
    with pytest.raises(UserError) as error:
        compare_config(config_with(log_steps=7, **{key: value}), tmp_path)
    assert f"{key}: {listed[0]} -> {listed[1]}" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "log_steps" not in str(error.value)


@pytest.mark.parametrize("mode", ["finetune", "linear"])
def test_run_of_another_mode_is_not_overwritten(tmp_path, mode):
    write_config(config_with(), tmp_path)
    check_mode(config_with(seed=3), tmp_path)
    check_mode(getattr(common, mode)(), tmp_path / "new")
    with pytest.raises(UserError, match=rf"holds a run of mode 'pretrain', which one of '{mode}' would overwrite"):
        check_mode(getattr(common, mode)(), tmp_path)


def test_all_refused_changes_are_named(tmp_path):
    write_config(config_with(), tmp_path)
    with pytest.raises(UserError, match=r"(?s)batch_size: 256 -> 64.*seed: 0 -> 3"):
        compare_config(config_with(seed=3, batch_size=64), tmp_path)


@pytest.mark.parametrize("folder", ["", "missing", "."], ids=["no name", "missing", "empty"])
def test_folder_without_a_run_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not the workdir of a run"):
        read_config(folder)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "no format version, so a version of cvsa_jax before 1.0 wrote it: use this run with"),
        (formats.RUN - 1, r"an older version of cvsa_jax wrote \(this one reads \d+\): use this run with"),
        (
            formats.RUN + 1,
            r"a newer version of cvsa_jax wrote \(this one reads \d+\): update cvsa_jax, or use this run",
        ),
    ],
    ids=["no version", "older", "newer"],
)
def test_run_of_another_format_version_is_refused(tmp_path, found, said):
    write_config(config_with(), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": found}))
    for read in (
        lambda: read_config(str(tmp_path)),
        lambda: load(str(file)),
        lambda: check_mode(config_with(), tmp_path),
    ):
        with pytest.raises(UserError, match=rf"config\.json has.* {said}"):
            read()


def build(config):
    """Everything that a command would build from `config`; the number of images is that of CUB's train split."""
    if config.mode == "linear":
        spec = settings.evaluation(config.eval, common.pretrain())
        assert (spec.size, spec.resize) == (224, 256)
        assert settings.probe(config).learning_rates and settings.knn(config.eval).ks
        return
    if config.mode == "finetune":
        assert settings.evaluation(config.eval, config).size == config.views.size
        checks.learning_rates("", config.learning_rates)
        settings.classifier(config.model, 200)
        settings.optimizer(config, 60)
        return
    if config.mode == "saliency_unet":
        assert config.size % settings.unet(config.model).stride == 0
        Geometry(config.augment.side, config.augment.aspect, config.augment.composite_prob)
        settings.photometric(config.augment.colour)
        settings.optimizer(config, 557)
        return
    assert config.mode == "pretrain"
    model = settings.model(config.model)
    spec = settings.view_spec(config, model.stride)
    assert config.batch_size % spec.group == 0
    assert spec.size // view_spec.MASK_STRIDE % (spec.size // model.stride) == 0  # losses.cell_masks
    settings.optimizer(config, 5994)
    settings.step_spec(config, 5994)
    settings.evaluation(config.eval, config)


@pytest.mark.parametrize("name", FILES)
def test_config_files_build(name, tmp_path):
    get_config = importlib.import_module(f"configs.{name}").get_config
    for argument in ARGUMENTS.get(name, ("",)):
        config = get_config(argument)
        build(config)
        reference = getattr(common, config.mode)()
        assert flat_config(config).keys() == flat_config(reference).keys()
        write_config(config, tmp_path)
        assert compare_config(config, tmp_path) == []
    build(get_config())


# All sets share the code of `cub`.
@pytest.mark.parametrize("name", ["demo", "folder", "folder_linear", "folder_finetune", "imagenet", "cub"])
def test_unknown_option_of_a_config_file_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown option huge; known: "):
        importlib.import_module(f"configs.{name}").get_config("huge")


@pytest.mark.parametrize(
    ("argument", "objective", "views", "weight"),
    [
        ("", "byol", "random_resized_crop", 0.0),
        ("tpu_v4_32", "byol", "random_resized_crop", 0.0),
        ("moco", "moco", "random_resized_crop", 0.0),
        ("simclr,cvsa", "simclr", "saliency_swap", 1.0),
    ],
)
def test_imagenet_config_defaults_to_stage_1(argument, objective, views, weight):
    config = importlib.import_module("configs.imagenet").get_config(argument)
    assert (config.objective, config.views.kind, config.align.weight) == (objective, views, weight)
    assert (config.data.kind, config.data.test_split) == ("tfds:imagenet2012", "validation")


@pytest.mark.parametrize("name", ["cub", "food"])
def test_large_batch_preset_is_refused_for_small_sets(name):
    with pytest.raises(ValueError, match=r"option tpu_v4_32 has batches of 4096 of the [\d,]+ images: leave it out"):
        importlib.import_module(f"configs.{name}").get_config("byol,tpu_v4_32")


def test_inaturalist_config_defaults_to_2018():
    get_config = importlib.import_module("configs.inat").get_config
    sets = {option: get_config(option).data for option in ("", "2021", "mini")}
    kinds = {option: (data.kind, data.train_split, data.test_split) for option, data in sets.items()}
    assert kinds == {key: (f"inat{key and ':' + key}", "train", "val") for key in ("", "2021", "mini")}
    with pytest.raises(ValueError, match="options 2021, mini: one at a time"):
        get_config("2021,mini")


@pytest.mark.parametrize("name", sets.SETS)
def test_three_configs_of_a_set_share_their_data(name):
    configs = [importlib.import_module(f"configs.{name}{kind}").get_config() for kind in ("", "_linear", "_finetune")]
    assert [config.mode for config in configs] == ["pretrain", "linear", "finetune"]
    data = [{key: value for key, value in config.data.items() if key != "cache"} for config in configs]
    assert all(one == data[0] for one in data)
    assert configs[0].data.kind in sources.OFFICIAL


def test_aircraft_and_flowers_train_on_train_and_validation():
    splits = {name: importlib.import_module(f"configs.{name}").get_config().data.train_split for name in sets.SETS}
    assert [name for name, split in splits.items() if split == "trainval"] == ["aircraft", "flowers"]
    family = importlib.import_module("configs.aircraft_finetune").get_config("family,448")
    assert (family.data.kind, family.views.size) == ("aircraft:family", 448)


def test_scratch_recipe_matches_its_paper():
    config = folder.get_config("scratch")
    assert config.optim.lr * config.batch_size / 256 == pytest.approx(1e-3)
    assert settings.target_tau(config) == 0.996 and not config.target.cosine
    assert (config.optim.name, config.total_epochs, config.views.kind) == ("adam", 1000, "saliency_swap")


@pytest.mark.parametrize(
    ("changes", "images", "said"),
    [
        ({"init_from": "runs/stage1"}, 5994, ()),
        ({"init_from": "runs/stage1", "batch_size": 1024}, 5994, ("an epoch has 5 steps .* a batch of 596, ",)),
        ({}, 5994, ("the run begins from random weights, with lars, for 2,341 steps",)),
        ({"views__kind": "random_resized_crop"}, 5994, ()),
        ({}, 300, ("an epoch has 1 steps .* a batch of 28, ", "the run begins")),
        # Too few images for ten steps of batches that have statistics; and what is as small already.
        ({"batch_size": 32}, 70, ("an epoch has 2 steps .* a batch of 16, ", "the run begins")),
        ({"batch_size": 16}, 70, ("the run begins",)),
    ],
    ids=[
        "weights given",
        "large batch",
        "random weights",
        "stage 1",
        "small set",
        "too small for ten steps",
        "small batch already",
    ],
)
def test_notes_warn_of_small_sets_and_random_starts(changes, images, said):
    *warnings, pace = settings.notes(config_with(**changes), images)
    assert pace.startswith("target: tau") and all(text.startswith(("warning: ", "note: ")) for text in warnings)
    assert len(warnings) == len(said)
    assert all(re.search(pattern, warning) for pattern, warning in zip(said, warnings, strict=True))


@pytest.mark.parametrize(
    ("option", "devices", "at_once"), [("gpu8gb", 1, 32), ("gpu24gb", 1, 128), ("tpu_v4_32", 16, 256)]
)
def test_device_presets_fit_batches_to_memory(option, devices, at_once):
    config = folder.get_config(option)
    assert config.batch_size / devices / config.accumulate_steps == at_once
    assert config.model.dtype == "bfloat16" and config.model.depth == 50 and config.views.size == 224
    assert config.batch_size / devices % config.views.group == 0
    with pytest.raises(ValueError, match="one kind of device at a time"):
        folder.get_config("gpu8gb,gpu24gb")
    if option != "tpu_v4_32":  # as many images at once also of another batch, and a small one whole
        config.batch_size = 2 * at_once
        assert config.accumulate_steps == 2
        config.batch_size = 16
        assert config.accumulate_steps == 1


def test_step_spec_takes_values_of_the_config():
    config = config_with(align__weight=0.5, align__form="cosine", align__temperature=0.3, accumulate_steps=3, seed=4)
    spec = settings.step_spec(config, 5994)
    assert (spec.align.weight, spec.align.form, spec.align.temperature) == (0.5, "cosine", 0.3)
    assert (spec.accumulate, spec.seed, spec.objective) == (3, 4, losses.OBJECTIVES["byol"])
    assert (spec.augment[0].blur_prob, spec.augment[1].blur_prob) == (1.0, 0.1)
    total = settings.total_steps(config, 5994)
    assert [float(spec.tau(step)) for step in (0, total)] == pytest.approx([0.99 ** (256 / 4096), 1.0])
