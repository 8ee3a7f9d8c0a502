import jax
import numpy as np
import pytest

from jointrd_jax.deploy import fold as folding, graph
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import SHORTCUTS, Network, create
from tests.support.networks import images_like, randomised, relative_difference

IMAGE = {'cifar': (16, 16, 3), 'imagenet': (48, 48, 3)}


def logits(network: Network, variables, images) -> np.ndarray:
    return np.asarray(jax.jit(network.apply)(variables, images).logits)


@pytest.mark.parametrize('stem', ['cifar', 'imagenet'])
@pytest.mark.parametrize('shortcuts', SHORTCUTS)
@pytest.mark.parametrize('bottleneck', [False, True])
def test_a_folded_network_computes_the_same(bottleneck, shortcuts, stem):
    network = Network((1, 2, 1), bottleneck, 4, 7, stem, shortcuts, reparam='none' if shortcuts == 'all' else 'dirac')
    variables, images = randomised(network, IMAGE[stem]), images_like(IMAGE[stem])
    folded = folding.fold(network, variables, IMAGE[stem])
    assert relative_difference(graph.apply(folded, images), logits(network, variables, images)) < 1e-5
    assert ('add' in folded.operators()) == (shortcuts != 'none')
    assert folded.num_classes == 7


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
