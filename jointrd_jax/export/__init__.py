"""Deployable files from a run, each proved by its own runtime: `python -m jointrd_jax.export`."""
