import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jointrd_jax.deploy import fold as folding, graph
from jointrd_jax.errors import UserError
from jointrd_jax.method.architectures import ACTIVATIONS, REPARAMS, SHORTCUTS
from jointrd_jax.method.layers import FADING, SLOPE, annealed
from jointrd_jax.method.networks import Network, create, deployed, parameter_count
from tests.support.networks import images_like, randomised, relative_difference

IMAGE = {'cifar': (16, 16, 3), 'imagenet': (48, 48, 3), 'pool_first': (48, 48, 3)}


def logits(network: Network, variables, images) -> np.ndarray:
    return np.asarray(jax.jit(network.apply)(variables, images).logits)


@pytest.mark.parametrize('stem', ['cifar', 'imagenet', 'pool_first'])
@pytest.mark.parametrize('shortcuts', SHORTCUTS)
@pytest.mark.parametrize('bottleneck', [False, True])
def test_a_folded_network_computes_the_same(bottleneck, shortcuts, stem):
    network = Network((1, 2, 1), bottleneck, 4, 7, stem, shortcuts, reparam='none' if shortcuts == 'all' else 'dirac')
    variables, images = randomised(network, IMAGE[stem]), images_like(IMAGE[stem])
    folded = folding.fold(network, variables, IMAGE[stem])
    assert relative_difference(graph.apply(folded, images), logits(network, variables, images)) < 1e-5
    assert ('add' in folded.operators()) == (shortcuts != 'none')
    assert folded.num_classes == 7


ROADS = [
    *(dict(reparam=reparam, activation=activation, slope=0.3) for reparam in REPARAMS for activation in ACTIVATIONS),
    dict(shortcuts='all', groups=2),
    dict(reparam='branches', groups=2, activation='prelu', slope=0.9),
    dict(reparam='dirac', groups=2),
]


@pytest.mark.parametrize('road', ROADS, ids=lambda road: '-'.join(map(str, road.values())))
def test_every_road_folds_into_the_network_that_it_trained(road):
    bottleneck = 'groups' in road
    network = Network((1, 2, 1), bottleneck, 4, 7, 'imagenet', **{'shortcuts': 'none', **road})
    variables, images = randomised(network, IMAGE['imagenet']), images_like(IMAGE['imagenet'])
    with jax.enable_x64(True):  # what is left is the rounding of the folded weights
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (variables, images))
        wanted = logits(network.clone(dtype=np.float64), *wide)
    folded = folding.fold(network, variables, IMAGE['imagenet'])
    assert relative_difference(graph.apply(folded, images), wanted) < 2e-6
    convolutions = network.num_blocks * (3 if bottleneck else 2)
    assert folded.operators()['conv'] == 1 + convolutions + (3 if road.get('shortcuts') == 'all' else 0)
    assert 'add' not in folded.operators() or 'shortcuts' in road


def test_an_annealed_network_is_deployed_with_relus_alone():
    network = Network((1, 1), False, 4, 7, 'cifar', 'none', activation='annealed', slope=0.5)
    variables = randomised(network, (16, 16, 3))
    assert 'leaky_relu' in folding.fold(network, variables, (16, 16, 3)).operators()
    done = {**variables, 'batch_stats': annealed(variables['batch_stats'], {SLOPE: jnp.float32(0)})}
    assert 'leaky_relu' not in folding.fold(network, done, (16, 16, 3)).operators()


@pytest.mark.parametrize('activation', ['annealed', ('prelu', 'annealed')])
def test_rectifiers_that_were_annealed_are_relus_of_the_network_that_is_left(activation):
    shape = (16, 16, 3)
    network = Network((1, 1), False, 4, 7, 'cifar', 'none', activation=activation, slope=0.5)
    variables, images = randomised(network, shape), images_like(shape)
    assert deployed(network, variables)[0] is network
    done = {**variables, 'batch_stats': annealed(variables['batch_stats'], {SLOPE: jnp.float32(0)})}
    left, kept = deployed(network, done)
    assert left.per_block(left.activation) == ('relu' if activation == 'annealed' else 'prelu', 'relu')
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, left.shapes(shape))
    np.testing.assert_array_equal(logits(left, kept, images), logits(network, done, images))


@pytest.mark.parametrize('shortcuts', ['fading', ('fading', 'all', 'none', 'fading')])
@pytest.mark.parametrize('bottleneck', [False, True])
def test_a_network_is_deployed_without_the_shortcuts_that_have_faded(bottleneck, shortcuts):
    shape = (16, 16, 3)
    network = Network((1, 2, 1), bottleneck, 4, 7, 'cifar', shortcuts, activation='prelu', slope=0.5)
    variables, images = randomised(network, shape), images_like(shape)
    assert deployed(network, variables)[0] is network
    done = {**variables, 'batch_stats': annealed(variables['batch_stats'], {FADING: jnp.float32(0)})}
    left, kept = deployed(network, done)
    assert left.shortcuts == ('none' if shortcuts == 'fading' else ('none', 'all', 'none', 'none'))
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, left.shapes(shape))
    assert parameter_count(kept) < parameter_count(done)
    np.testing.assert_array_equal(logits(left, kept, images), logits(network, done, images))
    for folded in (folding.fold(network, done, shape), folding.fold(left, kept, shape)):
        assert ('add' in folded.operators()) == (shortcuts != 'fading')
        assert relative_difference(graph.apply(folded, images), logits(network, done, images)) < 1e-5


def test_shapes_say_what_is_computed():
    network = create('resnet18', width=4, num_classes=7)
    folded = folding.fold(network, randomised(network, (40, 56, 3)), (40, 56, 3))
    shapes, values = folded.shapes(), {}

    def record(x):
        values[graph.INPUT] = x
        for node in folded.nodes:
            values[node.output] = graph.COMPUTE[node.op](node, *(values[name] for name in node.inputs))
        return values

    seen = jax.eval_shape(record, jax.ShapeDtypeStruct((1, 40, 56, 3), np.float32))
    assert {name: value.shape[1:] for name, value in seen.items()} == shapes


def test_counts_are_those_of_the_literature():
    network = create('resnet50')
    variables = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(1), leaf.shape),
        jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32)),
    )
    folded = folding.fold(network, variables, (224, 224, 3))
    assert folded.macs() == 4_089_184_256  # 4.09 G, as torchvision documents
    assert folded.parameters() == 25_557_032 - 26_560  # a convolution's bias replaces BatchNorm's scale and bias


def test_normalisation_is_folded_only_where_that_is_exact():
    network = Network((1, 1), width=4, num_classes=7, stem_kind='cifar', shortcuts='none')
    variables = randomised(network, (16, 16, 3))
    folded = folding.fold(network, variables, (16, 16, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.float32)
    std = np.asarray([0.2, 0.25, 0.3], np.float32)

    zero_mean = folding.fold_normalisation(folded, (0, 0, 0), std)
    assert len(zero_mean.nodes) == len(folded.nodes)
    wanted = logits(network, variables, pixels / 255 / std)
    assert relative_difference(graph.apply(zero_mean, pixels), wanted) < 1e-5

    mean = np.asarray([0.5, 0.4, 0.3], np.float32)
    with pytest.raises(UserError, match='pads its input with zeros'):
        folding.fold_normalisation(folded, mean, std)
    in_front = folding.normalisation_first(folded, mean, std)
    wanted = logits(network, variables, (pixels / 255 - mean) / std)
    assert relative_difference(graph.apply(in_front, pixels), wanted) < 1e-5
    assert in_front.operators().keys() == folded.operators().keys()
