"""`python -m cvsa_jax.saliency`: makes the saliency store of a data set.

python -m cvsa_jax.saliency --config=configs/folder.py --config.data.root=my_images --detector=masks
"""

from absl import flags

from cvsa_jax import cli, settings
from cvsa_jax.errors import UserError
from cvsa_jax.saliency.compute import compute
from cvsa_jax.saliency.detectors import DETECTORS
from cvsa_jax.saliency.store import store_path

_DETECTOR = flags.DEFINE_enum("detector", None, sorted(DETECTORS), "Default: config.saliency.detector.")


def main() -> None:
    config = cli.config()
    name = _DETECTOR.value or config.saliency.detector
    if name not in DETECTORS:
        raise UserError(f"config.saliency.detector={name!r} is unknown; take one of {', '.join(DETECTORS)}")
    source = settings.load_source(config.data)
    folder = store_path(config.saliency.store, source.name, name)
    manifest = compute(
        source,
        DETECTORS[name](source),
        folder,
        threshold=config.saliency.threshold,
        on_bad_image=config.data.on_bad_image,
    )
    print(
        f"{folder}: {manifest['images']} maps by {name} (supervision: {manifest['supervision']}), mean area "
        f"{manifest['mean_area']:.0%}, {manifest['blank']} blank, {manifest['full']} full, "
        f"{manifest['fallback']} with the centre box, {len(manifest['unreadable'])} unreadable, "
        f"{manifest['ms_per_image']:.1f} ms/image"
    )


if __name__ == "__main__":
    cli.run(main)
