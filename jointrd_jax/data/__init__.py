"""Where images come from: `load(config)` returns the `Dataset` that config.dataset names."""

from jointrd_jax.data.base import Dataset
from jointrd_jax.data.registry import load

__all__ = ['Dataset', 'load']
