"""Saliency maps, made once per data set: `python -m cvsa_jax.saliency --config=… --detector=…`."""
