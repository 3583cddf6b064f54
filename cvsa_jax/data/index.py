"""The data order: which example stands at which place, as a pure function of (seed, position).

Position p counts examples from the start of the run: step s of global batch size B holds positions s·B … s·B + B − 1.
So a run resumes exactly at any step, and the global batch is the same for any number of processes.
"""

import tensorflow as tf

_SEED_PREFIX = 498247692  # of `tf.random.experimental.index_shuffle`


def example_order(positions: tf.Tensor, n: int, seed: int) -> tf.Tensor:
    """Positions (k,) int64 -> examples (k,) int64 in [0, n): in each epoch every example once, in a new order."""
    # What `tf.random.experimental.index_shuffle` does for one seed of two numbers, here for one seed per position:
    # the public operation accepts several seeds but then pads their wrong axis too (TensorFlow 2.21).
    epochs = positions // n
    parts = (tf.fill(tf.shape(positions), tf.constant(part, tf.int64)) for part in (_SEED_PREFIX, seed))
    seeds = tf.stack([*parts, epochs], -1)
    return tf.raw_ops.RandomIndexShuffle(
        index=positions % n, seed=seeds, max_index=tf.constant(n - 1, tf.int64), rounds=4
    )


def position_words(positions: tf.Tensor) -> tf.Tensor:
    """Positions (k,) int64 -> (k, 2) uint32, high and low word, as the device's random keys take them."""
    return tf.cast(tf.stack([positions // 2**32, positions % 2**32], -1), tf.uint32)
