"""Encoded bytes -> pixels: the project's one decoder, so that training can read what the saliency pass accepts."""

import re

import numpy as np
import tensorflow as tf

# The host's device is the CPU; the accelerator is JAX's.
tf.config.set_visible_devices([], "GPU")


class Unreadable(Exception):
    """Says, in one line, why bytes are not an image."""


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, BMP or the first frame of a GIF -> (H, W, 3) uint8; tf.errors.InvalidArgumentError if it is not."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def to_array(encoded: bytes) -> np.ndarray:
    """The same outside a graph; raises Unreadable."""
    try:
        return decode(tf.constant(encoded)).numpy()
    except tf.errors.OpError as error:
        # Between the names of TensorFlow's node and operation.
        reason = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", str(error.message).splitlines()[0])
        raise Unreadable(reason[:160] if encoded else "the file is empty") from None
