"""Shapes that are not what the annotations of method/ say are errors, even if arrays would broadcast."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from jointrd_jax.method import joint, layers, losses
from jointrd_jax.method.networks import Network

MAP, SCALE, KERNEL = jnp.ones((2, 4, 4, 3)), jnp.ones(3), jnp.ones((3, 3, 3, 5))
NETWORK = Network((1, 1), width=4, num_classes=3, stem_kind='cifar')


@pytest.mark.parametrize(
    'call, what',
    [
        (lambda: losses.margins(SCALE, jnp.ones(1)), 'bias'),  # would be taken for every channel
        (lambda: losses.margin_distillation(MAP, MAP[:1], SCALE), 'target'),  # for every image
        (lambda: losses.cross_entropy(jnp.ones((2, 3)), jnp.ones(2)), 'labels'),  # no integers
        (lambda: losses.hinton_kl(jnp.ones((2, 3)), jnp.ones((1, 3)), 4.0), 'teacher_logits'),
        (lambda: layers.convolve(MAP, KERNEL, stride=1, groups=3), 'kernel'),
        (lambda: NETWORK.shapes((8, 8)), 'x'),
        (lambda: joint.joint_loss({}, {}, MAP, jnp.zeros(3, int), networks=None, method=joint.Method()), 'labels'),
    ],
)
def test_another_shape_is_an_error(call, what):
    with pytest.raises(jaxtyping.TypeCheckError, match=f"typechecking parameter '{what}'"):
        jax.eval_shape(call)
