"""Where images come from: `load(config)` returns the `Dataset` that config.dataset names."""

from jointrd_jax.data.base import Dataset
from jointrd_jax.data.registry import has_test_images, load

__all__ = ['Dataset', 'has_test_images', 'load']
