import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jointrd_jax.method import joint, losses
from jointrd_jax.method.interface import StagedNetwork
from jointrd_jax.method.networks import Connectors, Network, hybrid, splice
from tests.support.networks import SMALL, random_variables

TEACHER = Network((1, 2, 1), **SMALL)  # every kind of shortcut, taps within a stage and at its end
STUDENT = TEACHER.clone(shortcuts='none')
IMAGES = jax.random.normal(jax.random.key(5), (4, 8, 8, 1))
LABELS = jnp.array([1, 2, 3, 4])


def test_our_networks_are_what_the_method_asks_for():
    assert isinstance(STUDENT, StagedNetwork)
    assert not isinstance(Connectors(), StagedNetwork)


def test_terms_are_called_what_the_loss_reports():
    for method in (
        joint.Method(),
        joint.Method((1, 3), distill_weight=1e-3),
        joint.Method((1, 3), distill_weight=1e-3).without_mixing(),
        joint.Method(kl_alpha=0.5),
    ):
        assert sorted(terms_of(method, jax.random.key(0))) == sorted(joint.term_names(method))


def terms_of(method, key):
    """The named terms of the loss of fresh networks."""
    networks = joint.Networks(STUDENT, TEACHER, Connectors())
    p, r = random_variables(STUDENT, 0), random_variables(TEACHER, 1)
    outputs = jax.jit(TEACHER.apply)(r, IMAGES)
    maps = dict.fromkeys(joint.path_names(method.taps), outputs.features)
    c = networks.connectors.init(key, maps, train=False)
    params, batch_stats = ({'student': p[name], 'connectors': c[name]} for name in ('params', 'batch_stats'))
    view = joint.TeacherView(r, jnp.zeros(outputs.features.shape[-1])).with_outputs(outputs)
    loss = functools.partial(joint.joint_loss, networks=networks, method=method)
    return jax.eval_shape(loss, params, batch_stats, IMAGES, LABELS, teacher=view)[1][0]


def test_mixing_weight():
    weights = [float(joint.mixing_weight(epoch, 0.2, 10)) for epoch in (0, 5, 10, 30)]
    np.testing.assert_allclose(weights, [1, 0.6, 0.2, 0.2], rtol=1e-6)
    assert float(joint.mixing_weight(0, 0.2, 0)) == pytest.approx(0.2)
    assert joint.mixing_weight(jnp.arange(3), 0.2, 0).shape == (3,)


@pytest.mark.parametrize('taps', [(2,), (0, 1, 2, 3), (1, 3)])
def test_batched_paths_equal_spliced_networks(taps):
    p, r = random_variables(STUDENT, 0), random_variables(TEACHER, 1)

    @jax.jit
    def both(p, r):
        outputs = STUDENT.apply(p, IMAGES, taps=taps)
        paths = joint.residual_paths(TEACHER, r, outputs.taps, taps)
        hybrids = [hybrid(STUDENT, TEACHER, tap) for tap in taps]
        spliced = [h.apply(splice(h, p, r, tap), IMAGES) for h, tap in zip(hybrids, taps)]
        return paths, spliced

    for (logits, features), outputs in zip(*both(p, r), strict=True):
        np.testing.assert_allclose(logits, outputs.logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(features, outputs.features, rtol=1e-4, atol=1e-4)


def loss_of(method, dtype=jnp.float32):
    """(loss of (params, teacher, mix), params, teacher)."""
    random = random_variables(STUDENT, 0), random_variables(TEACHER, 1), IMAGES
    p, r, images = jax.tree.map(lambda leaf: leaf.astype(dtype), random)
    networks = joint.Networks(STUDENT.clone(dtype=dtype), TEACHER.clone(dtype=dtype), Connectors())
    params, batch_stats = {'student': p['params']}, {'student': p['batch_stats']}

    def loss(params, teacher, mix=1.0):
        return joint.joint_loss(
            params, batch_stats, images, LABELS,
            networks=networks, method=method, mix=mix, teacher=joint.TeacherView(teacher),
        )[0]  # fmt: skip

    return loss, params, r


def test_no_taps_is_plain_training():
    loss, params, teacher = loss_of(joint.Method())
    p = random_variables(STUDENT, 0)
    outputs, _ = jax.jit(lambda p: STUDENT.apply(p, IMAGES, train=True, mutable=['batch_stats']))(p)
    np.testing.assert_allclose(jax.jit(loss)(params, teacher), losses.cross_entropy(outputs.logits, LABELS), rtol=1e-5)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield jnp.float64


def test_the_mixture_is_the_weighted_sum_of_its_paths(float64):
    """dL/dP = dCE(student)/dP + m * sum over paths, divided by their number when averaged."""
    taps = (1, 2, 3)

    def gradient(method):
        """mix -> the student's gradient."""
        loss, params, teacher = loss_of(method, dtype=float64)
        compiled = jax.jit(jax.grad(loss))
        return lambda mix: compiled(params, teacher, mix)['student']

    alone = gradient(joint.Method())(1.0)
    zero, half, full, third = map(gradient(joint.Method(taps)), (0.0, 0.5, 1.0, 1 / len(taps)))
    shared = gradient(joint.Method(taps, mean_of_paths=True))(1.0)
    averaged = gradient(joint.Method(taps, average_paths=True))(0.5)

    def same(a, b):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9), a, b)

    same(zero, alone)
    same(shared, third)
    same(half, jax.tree.map(lambda z, f: (z + f) / 2, zero, full))
    same(averaged, jax.tree.map(lambda h: h / 4, half))
    # What lies behind the last tap learns from the student's own path alone.
    same(full['head'], alone['head'])
    same(full['stage3_block1'], alone['stage3_block1'])
    early = full['stage1_block1']['conv1']['kernel'] - alone['stage1_block1']['conv1']['kernel']
    assert float(jnp.abs(early).max()) > 1e-3


def test_without_mixing_keeps_the_divisor():
    method = joint.Method((1, 2, 3), average_paths=True)
    with_paths, params, teacher = loss_of(method)
    without, _, _ = loss_of(method.without_mixing())
    np.testing.assert_allclose(jax.jit(without)(params, teacher), jax.jit(with_paths)(params, teacher, 0.0), rtol=1e-5)


def convolutions(function, *args) -> int:
    return str(jax.make_jaxpr(function)(*args)).count('dot_general') + str(jax.make_jaxpr(function)(*args)).count(
        'conv_general_dilated['
    )


def test_no_weight_gradient_of_the_teacher_is_computed():
    """The paths' backward pass has one product per teacher convolution (its input), not two."""
    taps = (3,)
    loss, params, teacher = loss_of(joint.Method(taps))
    plain, _, _ = loss_of(joint.Method())
    forward = convolutions(loss, params, teacher) - convolutions(plain, params, teacher)
    backward = convolutions(jax.grad(loss), params, teacher) - convolutions(jax.grad(plain), params, teacher)
    assert forward > 0 and backward == 2 * forward  # forward again and one product each: with weights it would be 3
