"""The settings of the objectives: recipes, queue, and what does not go together."""

import pytest

from configs import common, demo, folder
from cvsa_jax import losses, settings
from cvsa_jax.runtime.errors import UserError


def config_of(name: str, **changes):
    config = common.pretrain()
    config.objective = name
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def test_queue_scales_with_the_set():
    # In whole batches of 2 · 256 keys: as many as images, at least one batch, at most 65,536.
    sizes = {50: 512, 512: 512, 1023: 512, 1024: 1024, 5994: 5632, 65_536: 65_536, 1_281_167: 65_536}
    assert {images: settings.queue_size(config_of("moco"), images) for images in sizes} == sizes
    # 65,536 is no multiple of 2 · 96.
    assert settings.queue_size(config_of("moco", batch_size=96), 1_281_167) == 341 * 192
    assert settings.queue_size(config_of("moco", contrast__queue=1024), 512) == 1024


@pytest.mark.parametrize("name", ["byol", "simclr", "simsiam"])
def test_only_moco_has_a_queue(name):
    assert settings.queue_size(config_of(name, contrast__queue=1000), 5994) == 0


@pytest.mark.parametrize("queue", [-512, 0, 513])
def test_queue_must_be_a_multiple_of_the_keys_of_a_batch(queue):
    with pytest.raises(UserError, match=rf"config\.contrast\.queue={queue} is not a multiple of the 512 keys"):
        settings.queue_size(config_of("moco", contrast__queue=queue), 5994)


def test_queue_longer_than_an_epoch_is_refused():
    with pytest.raises(UserError, match=r"config\.contrast\.queue=1536 is more than the 1200 keys of an epoch"):
        settings.queue_size(config_of("moco", contrast__queue=1536), 600)


def test_unknown_objective_lists_the_known_ones():
    with pytest.raises(UserError, match=r"config\.objective='mocov3' .*byol, moco, simclr, simsiam"):
        settings.objective(config_of("mocov3"))
    assert settings.objective(config_of("simsiam")) == losses.OBJECTIVES["simsiam"]


@pytest.mark.parametrize("name", losses.OBJECTIVES)
def test_objective_option_has_its_published_recipe(name):
    plain, with_cvsa = folder.get_config(name), folder.get_config(f"{name},cvsa")
    assert plain.objective == with_cvsa.objective == name
    assert (plain.views.kind, plain.align.weight) == ("random_resized_crop", 0.0)
    assert (with_cvsa.views.kind, with_cvsa.align.weight) == ("saliency_swap", 1.0)
    # The recipe is the objective's either way.
    for part in ("optim", "target", "contrast", "augment"):
        assert plain[part].to_dict() == with_cvsa[part].to_dict()
    recipe = (plain.optim.name, plain.optim.lr, plain.optim.weight_decay, plain.contrast.temperature)
    assert (
        recipe
        == {
            "byol": ("lars", 0.45, 1e-6, 0.2),
            "moco": ("sgd", 0.03, 1e-4, 0.2),
            "simclr": ("lars", 0.3, 1e-6, 0.1),
            "simsiam": ("sgd", 0.05, 1e-4, 0.2),
        }[name]
    )
    # The authors' augmentation; of all but BYOL the same for both views.
    keys = ("brightness", "contrast", "saturation", "hue", "blur_prob", "solarize_prob")
    expected = {
        "byol": [(0.4, 0.4, 0.2, 0.1, 1.0, 0.0), (0.4, 0.4, 0.2, 0.1, 0.1, 0.2)],
        "moco": [(0.4, 0.4, 0.4, 0.1, 0.5, 0.0)] * 2,
        "simclr": [(0.8, 0.8, 0.8, 0.2, 0.5, 0.0)] * 2,
        "simsiam": [(0.4, 0.4, 0.4, 0.1, 0.5, 0.0)] * 2,
    }[name]
    assert [tuple(view[key] for key in keys) for view in (plain.augment.view1, plain.augment.view2)] == expected
    assert plain.views.crop_area == ((0.2, 1.0) if name in ("moco", "simsiam") else (0.08, 1.0))
    lengths = {"byol": (256, 100), "moco": (256, 200), "simclr": (4096, 100), "simsiam": (512, 100)}
    assert (plain.batch_size, plain.total_epochs) == lengths[name]
    assert (plain.target.tau, plain.target.cosine) == ((0.999, False) if name == "moco" else (0.99, True))
    torchs = name in ("moco", "simsiam")
    assert (plain.optim.nesterov, plain.optim.decay) == ((False, "all") if torchs else (True, "kernels"))
    assert plain.optim.predictor == ("fixed" if name == "simsiam" else "scheduled")


@pytest.mark.parametrize("name", losses.OBJECTIVES)
def test_same_option_gives_all_objectives_the_same_views(name):
    same, byol = folder.get_config(f"{name},same"), folder.get_config("byol")
    assert same.optim.to_dict() == folder.get_config(name).optim.to_dict()
    assert same.augment.to_dict() == byol.augment.to_dict()
    assert (same.views.to_dict(), same.batch_size, same.total_epochs) == (byol.views.to_dict(), 256, 100)


def test_target_speed_per_image_does_not_depend_on_batch_size():
    # BYOL's 100 epochs: .99 at 4096. Half of the target is new after ln ½ / ln .99 = 68.9676 steps of 4096 images.
    for batch_size in (256, 1024, 4096):
        config = config_of("byol", batch_size=batch_size)
        tau = settings.target_tau(config)
        assert tau ** (4096 / batch_size) == pytest.approx(0.99)
        assert f"after {68.9676 * 4096:,.0f} images, half of" in settings.target_half_life(config)
        assert float(settings.step_spec(config, 50_000).tau(0)) == pytest.approx(tau, abs=1e-6)
    assert settings.target_tau(folder.get_config("moco")) == 0.999
    assert settings.target_tau(folder.get_config("small")) == 0.99
    with pytest.raises(UserError, match=r"config\.target\.reference_batch=0 must be at least 1"):
        settings.target_tau(config_of("byol", target__reference_batch=0))


def test_two_objectives_at_a_time_are_refused():
    with pytest.raises(ValueError, match=r"moco, simclr: one objective at a time"):
        demo.get_config("simclr,moco")
