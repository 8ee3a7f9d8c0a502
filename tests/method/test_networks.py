import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.method import networks
from jointrd_jax.runs.torch_names import export_names, import_names, template
from tests.support.networks import SMALL, random_variables

# torchvision's counts for the ResNets; the others follow from the shortcuts' projections.
COUNTS = {
    'resnet18': 11_689_512, 'resnet34': 21_797_672, 'resnet50': 25_557_032,
    'projection18': 11_689_512, 'projection34': 21_797_672, 'projection50': 25_540_136,
    'plain18': 11_515_688, 'plain34': 21_623_848, 'plain50': 22_780_456,
}  # fmt: skip


@pytest.mark.parametrize('name', networks.REGISTRY)
def test_parameter_counts(name):
    assert networks.parameter_count(template(networks.create(name))) == COUNTS[name]


def test_unregistered_name_lists_the_names():
    with pytest.raises(UserError, match='plain18.*resnet50'):
        networks.create('resnet19')


@pytest.mark.parametrize('name, dirac', [('plain18', True), ('projection50', False)])
def test_path_equals_spliced_hybrid(name, dirac):
    student = networks.create(name, dirac=dirac, **SMALL)
    teacher = networks.create(name.replace('plain', 'resnet').replace('projection', 'resnet'), **SMALL)
    p, r = random_variables(student, 0), random_variables(teacher, 1)
    images = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))

    def path(p, r, block):
        h = student.apply(p, images, taps=(block,)).taps[0]
        return teacher.apply(r, teacher.apply(r, h, block, teacher.num_blocks, method='run_blocks'), method='run_head')

    for block in (0, 3, 7):
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
    with pytest.raises(UserError, match='all, projection, none'):
        networks.Network(**sizes, shortcuts='some').block_shortcuts()
    with pytest.raises(UserError, match='3 per-block choices .* 4 blocks'):
        networks.Network(**sizes, shortcuts=('none',) * 3).block_shortcuts()


def test_depth_and_boundaries():
    assert [networks.create(f'resnet{d}').depth for d in (18, 34, 50)] == [18, 34, 50]
    assert networks.Network(stage_sizes=(8, 8, 8, 8)).depth == 66
    assert networks.create('plain34').stage_ends == (3, 7, 13, 16)


def test_dirac_with_beta_zero_is_identity():
    conv = networks.Conv(6, 3, dirac=True)
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    params = conv.init(jax.random.key(1), x)['params']
    params['beta'] = jnp.zeros(6)
    y = conv.apply({'params': params}, x)
    np.testing.assert_array_equal(y[..., :4], x)
    np.testing.assert_array_equal(y[..., 4:], 0)


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

    assert height * width <= networks.AS_MATRIX
    ours, pull = jax.vjp(lambda x, kernel: networks.convolve(x, kernel, stride), x, kernel)
    theirs, pull_theirs = jax.vjp(reference, x, kernel)
    for one, other in zip((ours, *pull(ours)), (theirs, *pull_theirs(theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_batch_norm_keeps_the_unbiased_variance():
    norm = networks.BatchNorm()
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4)) * 3 + 1
    variables = norm.init(jax.random.key(1), x, False)
    y, updates = norm.apply(variables, x, True, mutable=['batch_stats'])
    flat = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(y.mean((0, 1, 2)), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(updates['batch_stats']['mean'], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updates['batch_stats']['var'], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


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
