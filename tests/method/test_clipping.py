import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jointrd_jax.method import clipping


@pytest.mark.parametrize('size', [1e-3, 1.0, 1e15, 1e22, 1e37])
def test_a_norm_whose_square_is_more_than_float32_holds(size):
    """Above 1e19 optax's own norm is infinite, and what it clips by it is 0 or not a number."""
    gradients = {'a': jnp.array([3.0, 0.0]) * size, 'b': {'c': -jnp.full((2, 2), 2.0) * size}}
    np.testing.assert_allclose(clipping.global_norm(gradients), 5 * size, rtol=1e-6)
    clip = clipping.clip_by_global_norm(1e-2)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    expected = min(1.0, 1e-2 / (5 * size)) * size
    np.testing.assert_allclose(clipped['a'], [3 * expected, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped['b']['c'], np.full((2, 2), -2 * expected), rtol=1e-6)


@pytest.mark.parametrize('limit', [0.5, 100.0])
def test_where_the_squares_fit_it_is_what_optax_computes(limit):
    gradients = {'a': jnp.linspace(-3, 7, 1000), 'b': jnp.linspace(0, 1e-3, 77)}
    ours, theirs = (clip(limit) for clip in (clipping.clip_by_global_norm, optax.clip_by_global_norm))
    clipped, expected = (clip.update(gradients, clip.init(gradients))[0] for clip in (ours, theirs))
    assert clipping.global_norm(gradients) == optax.tree.norm(gradients)
    for name in gradients:
        np.testing.assert_array_equal(clipped[name], expected[name])


@pytest.mark.parametrize('bad', [jnp.inf, -jnp.inf, jnp.nan])
def test_what_is_not_finite_stays_so(bad):
    assert not jnp.isfinite(clipping.global_norm({'a': jnp.array([1.0, bad]), 'b': jnp.ones(3)}))


def test_no_gradient_has_norm_0():
    assert clipping.global_norm({'a': jnp.zeros(3)}) == 0
