import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparing import assert_close, unit
from support.compiling import quick

from cvsa_jax.evaluation.encode import make_encoder
from cvsa_jax.models.siamese import Siamese
from cvsa_jax.runtime import distributed
from cvsa_jax.training import photometric
from cvsa_jax.training.state import empty_network

MODEL = Siamese(depth=8, width=4, stem="small", head_hidden=16, head_out=8, axis_name=distributed.AXIS)


def test_encoder_matches_plain_forward_pass(mesh_of):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
    shapes = empty_network(MODEL)
    network = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes)
    mesh = mesh_of(8)
    encode = make_encoder(MODEL, mesh, maps=True)
    rows = distributed.to_mesh({"images": images}, mesh)["images"]
    placed = jax.device_put(network, distributed.replicated(mesh))
    encoded = encode(placed, rows)
    assert_close(make_encoder(MODEL, mesh, maps=False)(placed, rows).pooled, encoded.pooled)

    views = photometric.normalize(photometric.to_float(jnp.asarray(images)))

    @quick
    def plain(variables, x):
        model = MODEL.clone(axis_name=None)
        return model.apply(variables, x, train=False), model.apply(variables, x, method="features")

    out, (last, expected) = plain(network.variables, views)
    assert_close(encoded.pooled, expected)
    assert_close(encoded.mean, np.asarray(last).mean(-1))
    assert encoded.component.shape == last.shape[:3]
    for got, feature_map in ((encoded.queries, out.prediction_map), (encoded.keys, out.projection_map)):
        cells = np.asarray(feature_map).reshape(16, 4, 8)
        assert_close(got, unit(cells))


@pytest.mark.slow
def test_component_encoder_does_not_deadlock_with_as_many_devices_as_threads():
    # XLA has as many threads as there are cores, and at least two. A deadlocked process can only be killed, so it is
    # another one.
    script = (
        "import jax, numpy as np\n"
        "from test_encode import MODEL, empty_network, distributed, make_encoder\n"
        "network = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), empty_network(MODEL))\n"
        "for devices in (2, 3):\n"
        "    mesh = distributed.make_mesh(jax.devices()[:devices])\n"
        "    images = np.random.default_rng(0).integers(0, 256, (64 * devices, 64, 64, 3), np.uint8)\n"
        "    images = distributed.to_mesh({'images': images}, mesh)['images']\n"
        "    placed = jax.device_put(network, distributed.replicated(mesh))\n"
        "    encode = make_encoder(MODEL, mesh, maps=True)\n"
        "    for _ in range(5): jax.block_until_ready(encode(placed, images))\n"
    )
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    subprocess.run([sys.executable, "-c", script], env=environment, timeout=600, check=True)
