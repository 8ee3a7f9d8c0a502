"""The norm of a gradient, and clipping to it, where the squares of the gradient are more than float32 holds.

The gradient of a deep plain network grows exponentially with its depth (Yang et al., "A Mean Field Theory of Batch
Normalization", ICLR 2019): at 258 layers its norm at the start is about 1e19, which is a number, and the square of it
is none in float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Tree = Any


def global_norm(tree: Tree) -> Float[Array, '']:
    """The Euclidean norm of all leaves of `tree` together; finite where the leaves and the norm itself are."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))
    unit = jnp.where(jnp.isfinite(optax.tree.norm(tree)), 1, largest)  # where the squares fit, nothing is rounded anew
    return unit * optax.tree.norm(jax.tree.map(lambda leaf: leaf / unit, tree))


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients whose `global_norm` is more than `limit` down to it, as optax's transformation of this name."""

    def clip(updates: Tree, _: Tree) -> Tree:
        norm = global_norm(updates)
        return jax.tree.map(lambda g: jnp.where(norm < limit, g, g / norm.astype(g.dtype) * limit), updates)

    return optax.stateless(clip)
