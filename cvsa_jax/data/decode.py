"""Encoded bytes -> pixels: the project's one decoder, so that training can read what the saliency pass accepts."""

import tensorflow as tf

# The host's device is the CPU; the accelerator is JAX's.
tf.config.set_visible_devices([], "GPU")


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, BMP or the first frame of a GIF -> (H, W, 3) uint8; tf.errors.InvalidArgumentError if it is not."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def problem(encoded: bytes) -> str | None:
    """Why `decode` cannot read these bytes, in one line; None where it can."""
    try:
        decode(tf.constant(encoded))
    except tf.errors.OpError as error:
        return str(error.message).splitlines()[0][:160] if encoded else "the file is empty"
    return None
