import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jointrd_jax import config as config_lib
from jointrd_jax.errors import UserError
from jointrd_jax.method import joint
from jointrd_jax.method.interface import required
from jointrd_jax.method.networks import parameter_count
from jointrd_jax.runs import from_config
from jointrd_jax.runs.torch_names import template
from tests.support.configs import shipped_config, tiny_config


def rates(config, epochs, steps_per_epoch=10):
    schedule = from_config.learning_rate(config, from_config.student(config, 10), steps_per_epoch)
    return [float(schedule(int(epoch * steps_per_epoch))) for epoch in epochs]


def test_the_authors_schedules():
    cifar = shipped_config('cifar10')
    np.testing.assert_allclose(
        rates(cifar, [0, 99.9, 100, 149.9, 150, 199]), [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3], rtol=1e-5
    )
    imagenet = shipped_config('imagenet')
    np.testing.assert_allclose(
        rates(imagenet, [0, 29.9, 30, 60, 90, 119]), [0.2, 0.2, 0.02, 2e-3, 2e-4, 2e-4], rtol=1e-5
    )


def test_warmup_and_cosine():
    config = tiny_config(
        epochs=100, optimizer__schedule='cosine', optimizer__learning_rate=0.2, optimizer__warmup_fraction=0.1
    )
    np.testing.assert_allclose(rates(config, [0, 5, 10, 55, 100]), [0, 0.1, 0.2, 0.1, 0], atol=1e-6)
    config.optimizer.schedule, config.optimizer.drop_epochs = 'step', (20,)
    np.testing.assert_allclose(rates(config, [5, 10, 19.9, 20, 50]), [0.1, 0.2, 0.2, 0.02, 0.02], rtol=1e-5)
    config.optimizer.drop_epochs, config.optimizer.drop_fractions = (), (0.2, 0.5)
    np.testing.assert_allclose(rates(config, [10, 19.9, 20, 50]), [0.2, 0.2, 0.02, 2e-3], rtol=1e-5)
    config.optimizer.drop_factor = 0.5
    np.testing.assert_allclose(rates(config, [10, 19.9, 20, 50]), [0.2, 0.2, 0.1, 0.05], rtol=1e-5)


def test_drops_that_fall_on_one_step_all_count():
    """Those within the warm-up on its end, and those that round to the same step."""
    config = tiny_config(
        epochs=100, optimizer__schedule='step', optimizer__learning_rate=0.2, optimizer__warmup_fraction=0.3,
        optimizer__drop_fractions=(0.1, 0.2, 0.5, 0.50001),
    )  # fmt: skip
    np.testing.assert_allclose(rates(config, [15, 30, 49.9, 50]), [0.1, 2e-3, 2e-3, 2e-5], rtol=1e-5)


def test_the_weight_of_the_mixed_paths_falls_as_the_config_says():
    weight = from_config.mixing_weight(tiny_config(epochs=100, mix__eta=0.2, mix__fraction=0.4))
    np.testing.assert_allclose(weight(np.array([0, 20, 40, 99])), [1, 0.6, 0.2, 0.2], rtol=1e-6)


def test_the_slope_is_annealed_over_its_fraction_of_the_run():
    config = tiny_config(
        procedure='plain', epochs=100, model__activation='annealed', model__slope=0.8, model__anneal_fraction=0.5
    )
    annealed = required(from_config.annealed(config, from_config.student(config, 10), 10), 'a schedule')
    steps = (0, 250, 500, 1000)
    np.testing.assert_allclose([annealed(step)['slope'] for step in steps], [0.8, 0.4, 0, 0], atol=1e-6)
    config.model.shortcuts = 'fading'
    annealed = required(from_config.annealed(config, from_config.student(config, 10), 10), 'a schedule')
    np.testing.assert_allclose([annealed(step)['weight'] for step in steps], [1, 0.5, 0, 0], rtol=1e-6)
    assert [float(annealed(step)['slope']) for step in steps[2:]] == [0, 0]
    config.model.anneal_fraction = 1.0  # at the last of 1000 steps at the latest
    annealed = required(from_config.annealed(config, from_config.student(config, 10), 10), 'a schedule')
    assert float(annealed(998)['weight']) > 0 == float(annealed(999)['weight'])
    config.model.shortcuts, config.model.activation, config.model.slope = 'none', 'prelu', 0.5
    assert from_config.annealed(config, from_config.student(config, 10), 10) is None


def test_deep_students_are_trained_at_a_lower_rate():
    """In proportion to the layers beyond config.optimizer.rate_layers; ResNets and shallow ones at the rate itself."""
    shapes = {34: (3, 4, 6, 3), 18: (2, 2, 2, 2), 66: (8, 8, 8, 8)}
    expected = {('plain', 34): 0.1, ('plain', 18): 0.1, ('plain', 66): 0.1 * 34 / 66, ('resnet', 66): 0.1}
    for (procedure, layers), rate in expected.items():
        config = tiny_config(
            procedure=procedure, model__stage_sizes=shapes[layers], optimizer__rate_layers=34,
            optimizer__learning_rate=0.1, optimizer__schedule='constant', optimizer__warmup_fraction=0.0,
        )  # fmt: skip
        np.testing.assert_allclose(rates(config, [0, 1]), [rate, rate], rtol=1e-6)


@pytest.mark.parametrize('shortcuts, lower', [('none,none', True), ('none,projection', False), ('all', False)])
def test_the_rate_is_lower_wherever_there_is_no_shortcut(shortcuts, lower):
    """However that is written."""
    config = tiny_config(
        procedure='plain', model__shortcuts=shortcuts, optimizer__rate_layers=3, optimizer__learning_rate=0.1
    )
    network = from_config.student(config, 10)
    assert network.depth == 6
    assert from_config.peak_rate(config, network) == pytest.approx(0.05 if lower else 0.1)


def test_the_slope_follows_the_depth():
    """1 - slope_layers / layers, never below 0."""
    for sizes, slope in (((3, 4, 6, 3), 0.5), ((8, 8, 8, 8), 1 - 17 / 66), ((1, 1), 0.0)):
        config = tiny_config(
            procedure='plain', model__stage_sizes=sizes, model__activation='prelu', model__slope_layers=17
        )
        assert from_config.student(config, 10).slope == pytest.approx(slope)
    config.model.slope = 0.5
    with pytest.raises(UserError, match=r'slope=0.5 and config.model.slope_layers=17 exclude each other'):
        config_lib.validate(config)


def test_optimizer_is_pytorchs_sgd():
    """Nesterov momentum on gradient + L2, none for Dirac's alpha and beta; clipping comes before L2."""
    config = tiny_config(optimizer__weight_decay=0.1, optimizer__momentum=0.8, optimizer__clip_norm=0.5)
    optimizer = from_config.optimizer(config, optax.constant_schedule(0.1))
    params = {'conv': {'kernel': jnp.array([2.0]), 'alpha': jnp.array([2.0]), 'beta': jnp.array([2.0])}}
    grads = {'conv': {'kernel': jnp.array([3.0]), 'alpha': jnp.array([4.0]), 'beta': jnp.array([0.0])}}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
    kernel = 0.5 * 3 / 5 + 0.1 * 2  # clipped to norm 0.5, then L2
    buffer = kernel * 0.8 + kernel
    np.testing.assert_allclose(updates['conv']['kernel'], [-0.1 * (kernel + 0.8 * buffer)], rtol=1e-5)
    np.testing.assert_allclose(updates['conv']['alpha'], [-0.1 * (0.4 + 0.8 * (0.4 * 1.8))], rtol=1e-5)
    np.testing.assert_allclose(updates['conv']['beta'], [0])


def test_taps():
    config = shipped_config('digits')
    network = from_config.student(config, 10)
    assert from_config.tap_sets(config, network) == ((3, 7, 13),)
    config.mix.num_taps = 7
    assert from_config.tap_sets(config, network) == ((2, 4, 6, 8, 10, 12, 14),)
    config.mix.num_taps, config.mix.tap_sets = 2, 3
    assert from_config.tap_sets(config, network) == ((2, 9), (5, 11), (7, 14))
    config.mix.tap_sets = 1
    deep = shipped_config('digits_deep')
    assert from_config.tap_sets(deep, from_config.student(deep, 10)) == ((4, 8, 12, 16, 20, 24, 28),)
    config.mix.num_taps, config.mix.taps = 0, (3, 16)
    with pytest.raises(UserError, match=r'\(3, 16\).* 16 blocks'):
        from_config.tap_sets(config, network)
    config.mix.taps, config.mix.num_taps = (), 20
    with pytest.raises(UserError, match='16 blocks'):
        from_config.tap_sets(config, network)


def test_per_block_shortcuts_and_procedures():
    config = tiny_config(model__stage_sizes=(1, 1, 1), model__shortcuts='none,all,projection')
    assert from_config.student(config, 10).shortcuts == ('none', 'all', 'projection')
    config.procedure, config.model.reparam = 'resnet', 'dirac'
    network = from_config.student(config, 10)
    assert network.shortcuts == 'all' and network.reparam == 'none'
    config.procedure, config.distill.weight = 'feature_kd', 1e-3
    assert from_config.method(config, network).taps == () and from_config.method(config, network).distill_weight == 1e-3
    config.procedure = 'logit_kd'
    assert (
        from_config.method(config, network).kl_alpha == 0.9 and not from_config.method(config, network).distill_weight
    )


@pytest.mark.parametrize(
    'model, count',  # torchvision's
    [
        (dict(model__depth=18), 11_689_512),
        (dict(model__depth=50, model__block='basic'), 21_797_672),  # resnet34: the same blocks per stage
        (dict(model__depth=34, model__block='bottleneck'), 25_557_032),  # resnet50
        (dict(model__depth=50, model__groups=32, model__width_per_group=4), 25_028_904),  # resnext50_32x4d
    ],
)
def test_resnets_are_torchvisions(model, count):
    config = shipped_config('digits', procedure='resnet', model__width=64, model__stem='imagenet', **model)
    assert parameter_count(template(from_config.student(config, 1000))) == count


@pytest.mark.parametrize(
    'overrides, built',
    [
        (dict(model__hidden=(3, 5)), dict(hidden=(3, 5))),
        (dict(model__activation='prelu', model__slope=0.3), dict(activation='prelu', slope=0.3)),
        (dict(model__activation='tailored', model__slope=0.3), dict(activation='leaky', slope=0.3)),
        (dict(dtype='bfloat16', remat=True), dict(dtype=jnp.bfloat16, remat=True)),
    ],
)
def test_other_choices_reach_the_student(overrides, built):
    network = from_config.student(tiny_config(procedure='plain', **overrides), 10)
    assert network == network.clone(**built)


@pytest.mark.parametrize('procedure', config_lib.PROCEDURES)
def test_the_loss_has_the_configs_terms(procedure):
    config = tiny_config(
        procedure=procedure, label_smoothing=0.1, distill__weight=2.0, distill__alpha=0.3, distill__temperature=5.0,
        mix__average_paths=False, mix__mean_of_paths=True,
    )  # fmt: skip
    method = from_config.method(config, from_config.student(config, 10))
    mixed = dict(taps=(1,), distill_weight=2.0, average_paths=False, mean_of_paths=True)
    kl = dict(kl_alpha=0.3, kl_temperature=5.0)
    terms = {
        'jointrd': mixed, 'jointrd_scratch': mixed, 'feature_kd': dict(distill_weight=2.0), 'logit_kd': kl,
        'resnet_kd': kl,
    }  # fmt: skip
    assert method == joint.Method(label_smoothing=0.1, **terms.get(procedure, {}))


def test_the_loss_by_hand():
    """(1 - alpha) CE, its labels smoothed, and alpha T^2 KL of the distributions softened by T (Hinton et al.)."""
    config = tiny_config(procedure='logit_kd', label_smoothing=0.1, distill__alpha=0.3, distill__temperature=5.0)
    student = from_config.student(config, 10)
    variables = student.initialise(jax.random.key(0), (8, 8, 1))
    images, taught = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jax.random.normal(jax.random.key(2), (4, 10))
    labels = np.array([1, 2, 3, 4])

    @jax.jit
    def logits_and_loss(variables):
        outputs, _ = student.apply(variables, images, train=True, mutable=['batch_stats'])
        params, batch_stats = ({'student': variables[name]} for name in ('params', 'batch_stats'))
        loss, _ = joint.joint_loss(
            params, batch_stats, images, labels, networks=joint.Networks(student),
            method=from_config.method(config, student), teacher=joint.TeacherView({}, logits=taught),
        )  # fmt: skip
        return outputs.logits, loss

    logits, loss = logits_and_loss(variables)
    targets = 0.9 * np.eye(10)[labels] + 0.1 / 10
    p, q = softmax(logits, 5.0), softmax(taught, 5.0)
    cross_entropy = -(targets * np.log(softmax(logits))).sum(1).mean()
    kl = 25 * (q * np.log(q / p)).sum(1).mean()
    np.testing.assert_allclose(loss, 0.7 * cross_entropy + 0.3 * kl, rtol=1e-4)


def softmax(logits, temperature=1.0):
    raised = np.exp(np.asarray(logits, np.float64) / temperature)
    return raised / raised.sum(1, keepdims=True)


def test_imagenet_trains_a_plain50_with_dirac():
    """ResNet-50's 25,557,032 parameters without its four projections, with Dirac's alpha and beta."""
    config = shipped_config('imagenet')
    student = from_config.student(config, 1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(student.init, jax.random.key(0), images)['params']
    leaves = jax.tree_util.tree_leaves_with_path(params)
    dirac = sum(leaf.size for path, leaf in leaves if path[-1].key in ('alpha', 'beta'))
    projections = 64 * 256 + 256 * 512 + 512 * 1024 + 1024 * 2048 + 2 * (256 + 512 + 1024 + 2048)
    assert sum(leaf.size for _, leaf in leaves) - dirac == 25_557_032 - projections and dirac > 0
    assert from_config.method(config, student).taps == (3, 7, 13)
