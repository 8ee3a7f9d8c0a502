"""Small networks with weights and statistics that look trained, for tests of what happens after training."""

import jax
import jax.numpy as jnp
import numpy as np

from jointrd_jax.method.networks import Network, Variables

SMALL = dict(width=4, num_classes=10, stem_kind='cifar')


def randomised(network: Network, image_shape: tuple[int, int, int], seed: int = 0) -> Variables:
    """Variables with every BatchNorm's scale, bias, mean and variance (and Dirac's alpha, beta) drawn at random."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'slope':
            return np.asarray(rng.uniform(0.1, 0.9, leaf.shape), np.float32)
        if name in ('scale', 'var', 'alpha', 'beta'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if name == 'kernel' else 0.3
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, network.shapes(image_shape))


def images_like(image_shape: tuple[int, int, int], batch: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, *image_shape)).astype(np.float32)


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over largest value."""
    return float(np.abs(np.asarray(found, np.float64) - wanted).max() / np.abs(wanted).max())


def random_variables(network, seed, shape=(8, 8, 1)):
    """Variables with random running statistics and BatchNorm parameters too."""
    variables = network.initialise(jax.random.key(seed), shape)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf if leaf.ndim > 1 else jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), variables
    )
