import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jointrd_jax.method import losses


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    labels = jnp.array([0, 2])
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6)
    smooth = -np.mean(
        [(0.7 + 0.1) * np.log(0.5) + 0.1 * 2 * np.log(0.25), (0.7 + 0.1) * np.log(0.8) + 0.1 * 2 * np.log(0.1)]
    )
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, 0.3), smooth, rtol=1e-6)


def test_margins_by_hand():
    # N(0, 1) given that it is negative has mean -sqrt(2/pi), whatever the scale's sign; N(10, 1) never is: -3 std.
    margin = losses.margins(jnp.array([1.0, -1.0, 1.0, 2.0]), jnp.array([0.0, 0.0, 10.0, 30.0]))
    np.testing.assert_allclose(margin, [-np.sqrt(2 / np.pi)] * 2 + [-3, -6], rtol=1e-5)


def test_margins_of_a_dead_channel_are_finite():
    assert np.isfinite(losses.margins(jnp.zeros(3), jnp.array([-1.0, 0.0, 1.0]))).all()


def test_margin_distillation_by_hand():
    def distance(f, t, margin):
        shape = (1, 1, 1, 1)
        return float(losses.margin_distillation(jnp.full(shape, f), jnp.full(shape, t), jnp.array([margin])))

    assert distance(1.0, 3.0, -0.5) == 4  # the teacher is on: plain L2
    assert distance(1.0, -3.0, -0.5) == 2.25  # off, cut at the margin; the student is above it
    assert distance(-0.4, -3.0, -0.5) == pytest.approx(0.01)
    assert distance(-2.0, -3.0, -0.5) == 0  # further off than the margin: nothing to learn


def test_margin_distillation_sums_positions_and_averages_images():
    f, t = jnp.zeros((2, 3, 3, 4)), jnp.ones((2, 3, 3, 4))
    assert losses.margin_distillation(f, t, -jnp.ones(4)) == 36
    grad = jax.grad(lambda t: losses.margin_distillation(f, t, -jnp.ones(4)))(t)
    assert not grad.any()


def test_hinton_kl_by_hand():
    p, q = np.array([0.2, 0.8]), np.array([0.6, 0.4])
    kl = losses.hinton_kl(jnp.log(jnp.array([p])) * 3, jnp.log(jnp.array([q])) * 3, 3.0)
    np.testing.assert_allclose(kl, 9 * np.sum(q * np.log(q / p)), rtol=1e-5)


@pytest.mark.parametrize('name', ['cross_entropy', 'margin_distillation', 'hinton_kl'])
def test_gradients_and_jit(name):
    key = jax.random.key(0)
    if name == 'cross_entropy':
        x, f = jax.random.normal(key, (4, 5)), lambda x: losses.cross_entropy(x, jnp.arange(4), 0.1)
    elif name == 'margin_distillation':
        target = jax.random.normal(jax.random.key(1), (2, 2, 2, 3))
        x, f = jax.random.normal(key, (2, 2, 2, 3)), lambda x: losses.margin_distillation(x, target, -jnp.ones(3))
    else:
        x, f = jax.random.normal(key, (4, 5)), lambda x: losses.hinton_kl(x, jnp.eye(4, 5), 4.0)
    np.testing.assert_allclose(f(x), jax.jit(f)(x), rtol=1e-6)
    direction = jax.random.normal(jax.random.key(2), x.shape)
    step = 1e-2
    numeric = (f(x + step * direction) - f(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(f)(x), direction), numeric, rtol=2e-2)
