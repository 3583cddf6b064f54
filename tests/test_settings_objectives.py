"""The settings of the objectives: recipes, queue, and what does not go together."""

import pytest

from configs import common, demo, folder, recipes
from cvsa_jax import losses, settings
from cvsa_jax.runtime.errors import UserError


def test_every_objective_has_a_recipe():
    assert recipes.RECIPES.keys() == losses.OBJECTIVES.keys()


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
    assert settings.queue_size(config_of("moco", contrast__queue=1024), 50) == 1024


@pytest.mark.parametrize("name", ["byol", "simclr", "simsiam"])
def test_only_moco_has_a_queue(name):
    assert settings.queue_size(config_of(name, contrast__queue=1000), 5994) == 0


@pytest.mark.parametrize("queue", [-512, 0, 1, 256, 511, 513, 1000])
def test_queue_that_is_not_a_multiple_of_a_batch_s_keys(queue):
    with pytest.raises(UserError, match=rf"config\.contrast\.queue={queue} is not a multiple of the 512 keys"):
        settings.queue_size(config_of("moco", contrast__queue=queue), 5994)


def test_unknown_objective_lists_the_known_ones():
    with pytest.raises(UserError, match=r"config\.objective='mocov3' .*byol, moco, simclr, simsiam"):
        settings.objective(config_of("mocov3"))
    assert settings.objective(config_of("simsiam")) == losses.OBJECTIVES["simsiam"]


@pytest.mark.parametrize("name", losses.OBJECTIVES)
def test_option_of_an_objective(name):
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
    assert (plain.target.tau, plain.target.cosine) == ((0.999, False) if name == "moco" else (0.99, True))


def test_two_objectives_at_a_time():
    with pytest.raises(ValueError, match=r"moco, simclr: one objective at a time"):
        demo.get_config("simclr,moco")
