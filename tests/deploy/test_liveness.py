import jax
import numpy as np
import pytest

from jointrd_jax.deploy import fold as folding, liveness
from jointrd_jax.deploy.graph import Graph, Node
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import create


def conv(source, output, inputs=1, outputs=1, stride=1):
    return Node('conv', (source,), output, np.zeros((3, 3, inputs, outputs)), np.zeros(outputs), 3, stride)


def by_hand():
    """One residual block on 4x4x1 images: a map is 16 values, 64 bytes."""
    nodes = (
        conv('images', 'a'),
        Node('relu', ('a',), 'b'),
        conv('b', 'c'),
        Node('relu', ('c',), 'd'),
        conv('d', 'e'),
        Node('add', ('e', 'b'), 'f'),
        Node('average_pool', ('f',), 'g'),
        Node('dense', ('g',), 'logits', np.zeros((1, 2)), np.zeros(2)),
    )
    return Graph(nodes, (4, 4, 1))


def test_each_model_by_hand():
    live = {model: [m.live // 4 for m in liveness.timeline(by_hand(), model)] for model in liveness.MODELS}
    #                        conv relu conv relu conv add pool dense
    assert live['nothing'] == [32, 32, 32, 48, 48, 48, 17, 3]
    assert live['in_place'] == [32, 16, 32, 32, 48, 32, 17, 3]
    assert live['accumulate'] == [32, 16, 32, 32, 32, 17, 3]
    assert liveness.peak(by_hand(), 'in_place') == 4 * 48
    assert liveness.sum_of_maps(by_hand()) == 4 * (4 * 16 + 1 + 2)


def test_what_a_shortcut_holds_by_hand():
    held = [moment.shortcut // 4 for moment in liveness.timeline(by_hand(), 'in_place')]
    assert held == [0, 0, 0, 16, 16, 0, 0, 0]


def folded(name):
    network, image = create(name), (224, 224, 3)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *image), np.float32))
    return folding.fold(network, jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), shapes), image)


def test_resnet50_against_its_plain_network():
    resnet, plain = folded('resnet50'), folded('plain50')
    assert liveness.peak(resnet, 'in_place') == 4 * (2 * 56 * 56 * 256 + 56 * 56 * 64)
    assert liveness.peak(plain, 'in_place') == 4 * (56 * 56 * 256 + 56 * 56 * 128)
    assert 1 - liveness.sum_of_maps(plain) / liveness.sum_of_maps(resnet) == pytest.approx(0.417, abs=5e-4)
    assert not any(moment.shortcut for moment in liveness.timeline(plain, 'nothing'))


def test_an_unknown_model_names_the_known():
    with pytest.raises(UserError, match='nothing, in_place, accumulate'):
        liveness.timeline(by_hand(), 'magic')
