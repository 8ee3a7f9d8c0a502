import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.method import architectures, layers, networks, pooling
from jointrd_jax.runs.torch_names import export_names, import_names, template
from tests.support.networks import SMALL, random_variables

# torchvision's counts for the ResNets; the others follow from the shortcuts' projections.
COUNTS = {
    'resnet18': 11_689_512, 'resnet34': 21_797_672, 'resnet50': 25_557_032,
    'projection18': 11_689_512, 'projection34': 21_797_672, 'projection50': 25_540_136,
    'plain18': 11_515_688, 'plain34': 21_623_848, 'plain50': 22_780_456,
    'resnet101': 44_549_160, 'resnet152': 60_192_808, 'wide_resnet50_2': 68_883_240, 'wide_resnet101_2': 126_886_696,
    'resnext50_32x4d': 25_028_904, 'resnext101_32x8d': 88_791_336,
    # He et al.'s CIFAR family with projections (their own shortcuts pad with zeros: 2,752 fewer)
    'resnet20': 272_474, 'resnet32': 466_906, 'resnet44': 661_338, 'resnet56': 855_770, 'resnet110': 1_730_714,
}  # fmt: skip
BOTTLENECK_PROJECTIONS = 2 * (256 + 512 + 1024 + 2048) + 64 * 256 + 256 * 512 + 512 * 1024 + 1024 * 2048
FIRST_PROJECTION = 64 * 256 + 2 * 256  # not kept by projection50 and its like
CIFAR_PROJECTIONS = 2 * (32 + 64) + 16 * 32 + 32 * 64


def count_of(name: str) -> int:
    """The count pinned, or for a network without shortcuts the one that follows from its ResNet's."""
    if name in COUNTS:
        return COUNTS[name]
    family = 'plain' if 'plain' in name else 'projection'
    whole = COUNTS[name.replace(family, 'resnext' if '_32x' in name else 'resnet')]
    if int(re.search(r'\d+', name)[0]) in architectures.CIFAR_DEPTHS:
        return whole - CIFAR_PROJECTIONS * (family == 'plain')
    return whole - (BOTTLENECK_PROJECTIONS if family == 'plain' else FIRST_PROJECTION)


# Every ResNet; of those without its shortcuts one of each kind of block, since the registry has them by the same rule.
KINDS = ('{}20', '{}34', '{}50', 'wide_{}50_2', '{}50_32x4d')
OTHERS = [kind.format(family) for kind in KINDS for family in ('projection', 'plain')]


@pytest.mark.parametrize('name', [*COUNTS, *(name for name in OTHERS if name not in COUNTS)])
def test_parameter_counts(name):
    assert networks.parameter_count(template(networks.create(name))) == count_of(name)


def test_every_resnet_is_there_without_its_shortcuts_too():
    resnets = {name for name in COUNTS if 'resne' in name}
    assert len(networks.REGISTRY) == 3 * len(resnets) and networks.REGISTRY.keys() >= COUNTS.keys() | set(OTHERS)


def test_unregistered_name_lists_the_names():
    with pytest.raises(UserError, match='plain18.*resnet50'):
        networks.create('resnet19')


@pytest.mark.parametrize(
    'bottleneck, road',
    [
        (False, dict(shortcuts='none', reparam='dirac', activation='prelu', slope=0.3)),
        (True, dict(shortcuts='projection', reparam='branches', activation='annealed', slope=0.4)),
    ],
)
def test_path_equals_spliced_hybrid(bottleneck, road):
    teacher = networks.Network((1, 2, 1), bottleneck, **SMALL)
    student = teacher.clone(**road)
    p, r = random_variables(student, 0), random_variables(teacher, 1)
    images = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))

    def path(p, r, block):
        h = student.apply(p, images, taps=(block,)).taps[0]
        return teacher.apply(r, teacher.apply(r, h, block, teacher.num_blocks, method='run_blocks'), method='run_head')

    for block in (0, 2, 3):  # the stem's end, within a stage, a stage's end
        hybrid = networks.hybrid(student, teacher, block)
        tree = networks.splice(hybrid, p, r, block)
        shapes = jax.tree.map(jnp.shape, tree)
        assert shapes == jax.tree.map(jnp.shape, jax.eval_shape(hybrid.init, jax.random.key(0), images))
        both = jax.jit(lambda p, r, tree, block=block, hybrid=hybrid: (path(p, r, block), hybrid.apply(tree, images)))
        ours, spliced = both(p, r, tree)
        np.testing.assert_allclose(ours, spliced.logits, rtol=2e-5, atol=1e-5)


def test_shortcut_kinds():
    sizes = dict(stage_sizes=(2, 2), **SMALL)
    assert networks.Network(**sizes).block_shortcuts() == ('identity', 'identity', 'projection', 'identity')
    assert networks.Network(**sizes, bottleneck=True).block_shortcuts()[0] == 'projection'
    assert networks.Network(**sizes, bottleneck=True, shortcuts='projection').block_shortcuts() == (
        'none', 'none', 'projection', 'none',
    )  # fmt: skip
    mixed = networks.Network(**sizes, shortcuts=('none', 'all', 'projection', 'none'))
    assert mixed.block_shortcuts() == ('none', 'identity', 'projection', 'none')
    with pytest.raises(UserError, match='all, projection, fading, none'):
        networks.Network(**sizes, shortcuts='some').block_shortcuts()
    with pytest.raises(UserError, match='3 per-block choices .* 4 blocks'):
        networks.Network(**sizes, shortcuts=('none',) * 3).block_shortcuts()


@pytest.mark.parametrize('rectifiers', [16, 32, 96, 256])
def test_the_tailored_slope_is_that_of_its_authors_package(rectifiers):
    from dks.base import activation_transform

    def chain(c, rectifier):
        for _ in range(rectifiers):
            c = rectifier(c)
        return c

    made = activation_transform.get_transformed_activations(['leaky_relu'], method='TAT', subnet_max_func=chain)
    theirs = made['leaky_relu']
    assert layers.tailored_slope(rectifiers) == pytest.approx(-theirs(-1.0) / theirs(1.0), abs=1e-6)


def test_where_relus_are_tailored_already_the_slope_is_zero():
    assert layers.tailored_slope(4) == 0


def test_depth_and_boundaries():
    assert [networks.create(f'resnet{d}').depth for d in (18, 34, 50)] == [18, 34, 50]
    assert networks.Network(stage_sizes=(8, 8, 8, 8)).depth == 66
    assert networks.create('plain34').stage_ends == (3, 7, 13, 16)


def test_dirac_with_beta_zero_is_identity():
    conv = layers.Conv(6, 3, dirac=True)
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    params = conv.init(jax.random.key(1), x)['params']
    params['beta'] = jnp.zeros(6)
    y = conv.apply({'params': params}, x)
    np.testing.assert_array_equal(y[..., :4], x)
    np.testing.assert_array_equal(y[..., 4:], 0)


def test_a_start_near_the_identity_passes_a_map_on():
    plain = networks.Network((4, 1), shortcuts='none', activation='leaky', slope=0.95, **SMALL)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    fresh = plain.init(jax.random.key(1), images)
    near = {**fresh, 'params': plain.near_identity(fresh['params'])}

    def cosine(variables):
        entering = plain.apply(variables, images, method='run_stem')
        leaving = plain.apply(variables, entering, 0, 4, method='run_blocks')
        return float((entering * leaving).sum() / jnp.linalg.norm(entering) / jnp.linalg.norm(leaving))

    assert cosine(near) > 0.8 > 0.5 > abs(cosine(fresh))


def test_a_start_near_the_identity_changes_the_kernels_of_blocks_alone():
    network = networks.Network((1, 1), True, shortcuts='projection', groups=2, **SMALL)
    fresh = network.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))['params']
    near = network.near_identity(fresh)
    before, after = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (fresh, near))
    for path, kernel in before.items():
        names = [key.key for key in path]
        if names[0].startswith('stage') and names[-1] == 'kernel':
            delta = layers.dirac_delta(kernel.shape, 2 if names[1] == 'conv2' else 1)
            np.testing.assert_allclose(after[path], delta + 0.1 * kernel, rtol=1e-6)
        else:
            assert after[path] is kernel


@pytest.mark.parametrize('size', [1, 3, 7])
@pytest.mark.parametrize('height, width', [(1, 1), (2, 2), (2, 1), (1, 4)])
@pytest.mark.parametrize('stride', [1, 2])
def test_small_maps_equal_the_convolution(size, height, width, stride):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 5))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 5, 6))
    pad = [(size // 2, size // 2)] * 2

    def reference(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pad, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    assert height * width <= layers.AS_MATRIX
    ours, pull = jax.vjp(lambda x, kernel: layers.convolve(x, kernel, stride), x, kernel)
    theirs, pull_theirs = jax.vjp(reference, x, kernel)
    for one, other in zip((ours, *pull(ours)), (theirs, *pull_theirs(theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_batch_norm_keeps_the_unbiased_variance():
    norm = layers.BatchNorm(4)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4)) * 3 + 1
    variables = norm.init(jax.random.key(1), x, False)
    y, updates = norm.apply(variables, x, True, mutable=['batch_stats'])
    flat = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(y.mean((0, 1, 2)), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(updates['batch_stats']['mean'], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updates['batch_stats']['var'], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def by_differentiation(x, scale, bias):
    mean, mean_of_squares = x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))
    var = jnp.maximum(mean_of_squares - jnp.square(mean), 0)
    return (x - mean.reshape(1, 1, 1, -1)) * (jax.lax.rsqrt(var + 1e-5) * scale).reshape(1, 1, 1, -1) + bias.reshape(
        1, 1, 1, -1
    )


@pytest.mark.parametrize('axis_name', [None, 'data'])
def test_batch_norm_has_the_gradient_of_differentiation_also_over_devices(axis_name):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        x, towards = (jax.random.normal(key, (4, 3, 3, 5), jnp.float64) * 2 + 1 for key in keys[:2])
        scale, bias = (jax.random.normal(key, (5,), jnp.float64) for key in keys[2:])

        def ours(x, scale, bias, towards):
            y, pull = jax.vjp(lambda *args: layers.normalise(*args, 1e-5, axis_name, jnp.float64)[0], x, scale, bias)
            to_x, *others = pull(towards)
            return y, to_x, jax.lax.psum(others, 'data')

        mesh = jax.make_mesh((2,), ('data',), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
        rows, whole = jax.sharding.PartitionSpec('data'), jax.sharding.PartitionSpec()
        mapped = jax.shard_map(
            ours, mesh=mesh, in_specs=(rows, whole, whole, rows), out_specs=(rows, rows, whole), check_vma=False
        )
        y, to_x, (to_scale, to_bias) = jax.jit(mapped)(x, scale, bias, towards)
        for part in (slice(None),) if axis_name else (slice(0, 2), slice(2, 4)):
            expected, pull = jax.vjp(by_differentiation, x[part], scale, bias)
            np.testing.assert_allclose(y[part], expected, rtol=1e-9, atol=1e-12)
            gradients = pull(towards[part])
            np.testing.assert_allclose(to_x[part], gradients[0], rtol=1e-9, atol=1e-12)
            to_scale, to_bias = to_scale - gradients[1], to_bias - gradients[2]
        np.testing.assert_allclose(np.stack([to_scale, to_bias]), 0, atol=1e-11)


def test_rectify_has_the_gradient_of_relu():
    x = jnp.asarray([-1.0, -0.0, 0.0, 1e-30, 2.0, jnp.nan, jnp.inf])
    for ours, theirs in zip(jax.vjp(layers.rectify, x), jax.vjp(jax.nn.relu, x)):
        ours, theirs = (value if isinstance(value, jax.Array) else value(x + 3)[0] for value in (ours, theirs))
        np.testing.assert_array_equal(ours, theirs)


def test_running_statistics_are_folded_into_the_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    conv, norm = layers.Conv(6, 3, dirac=True), layers.BatchNorm(6)
    variables = conv.init(jax.random.key(1), x)
    y = conv.apply(variables, x)
    keys = jax.random.split(jax.random.key(2), 4)
    scale, bias, mean = (jax.random.normal(key, (6,)) for key in keys[:3])
    statistics = {'mean': mean, 'var': jax.random.uniform(keys[3], (6,), minval=0.1)}
    bound = norm.bind({'params': {'scale': scale, 'bias': bias}, 'batch_stats': statistics})
    folded = conv.apply(variables, x, bound.folded())
    np.testing.assert_allclose(folded, bound(y, False), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (2, 7, 9, 3), (1, 1, 1, 2), (1, 2, 5, 2)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_both_gradients_of_the_pool_are_equal_to_the_bit(shape, dtype):
    x = jax.random.randint(jax.random.key(0), shape, -3, 4).astype(dtype)  # with ties
    y, pull = jax.vjp(pooling.pool_by_window, x)
    other, pull_other = jax.vjp(pooling.pool_by_place, x)
    np.testing.assert_array_equal(y, other)
    gradient = jax.random.normal(jax.random.key(1), y.shape, dtype)
    np.testing.assert_array_equal(pull(gradient)[0], pull_other(gradient)[0])


def test_bfloat16_computes_in_it_and_keeps_float32():
    network = networks.create('plain18', dtype=jnp.bfloat16, **SMALL)
    variables = network.initialise(jax.random.key(0), (8, 8, 1))
    outputs, updates = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=['batch_stats']))(
        variables, jnp.ones((2, 8, 8, 1))
    )
    assert outputs.features.dtype == jnp.bfloat16 and outputs.logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updates))} == {jnp.dtype('float32')}


@pytest.mark.parametrize('scheme', ['torchvision', 'authors'])
def test_torch_names_there_and_back(scheme):
    network = networks.create('resnet50', **SMALL)
    variables = random_variables(network, 3)
    flat = export_names(variables, scheme)
    assert (
        'layer2.0.downsample.1.running_var' if scheme == 'torchvision' else 'layers.1.0.downsample.1.running_var'
    ) in flat
    back = import_names(variables, flat, scheme)
    jax.tree.map(np.testing.assert_array_equal, variables, back)


def test_remat_computes_the_same():
    network = networks.Network((1, 2), **SMALL)
    variables, images = random_variables(network, 0), jax.random.normal(jax.random.key(2), (2, 8, 8, 1))

    def gradient(network):
        def loss(params):
            outputs, updates = network.apply(
                {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
            )
            return jnp.square(outputs.logits).mean(), updates

        return jax.jit(jax.grad(loss, has_aux=True))(variables['params'])

    kept, anew = gradient(network), gradient(network.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, anew)
