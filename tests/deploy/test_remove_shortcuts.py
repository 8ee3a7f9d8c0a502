import jax
import numpy as np
import pytest

from jointrd_jax.deploy.remove_shortcuts import without_shortcuts
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network
from tests.support.networks import images_like, randomised, relative_difference


@pytest.mark.parametrize('bottleneck', [False, True])
@pytest.mark.parametrize('shortcuts', ['all', 'projection'])
def test_the_plain_network_computes_the_same(shortcuts, bottleneck):
    network = Network((2, 2, 1), bottleneck, 4, 7, 'imagenet', shortcuts)
    variables, images = randomised(network, (48, 48, 3)), images_like((48, 48, 3))
    plain, merged = without_shortcuts(network, variables)
    assert set(plain.block_shortcuts()) == {'none'}
    wanted = jax.jit(network.apply)(variables, images).logits
    assert relative_difference(jax.jit(plain.apply)(merged, images).logits, np.asarray(wanted)) < 1e-5


def test_its_width_is_the_blocks_own_and_what_it_carries():
    network = Network((2, 2), width=4, num_classes=7, stem_kind='cifar')
    plain, _ = without_shortcuts(network, randomised(network, (8, 8, 3)))
    assert plain.hidden == (4 + 4, 4 + 4, 8 + 4, 8 + 8)


def test_the_wider_network_can_be_trained_on():
    network = Network((1, 1), width=4, num_classes=7, stem_kind='cifar')
    plain, merged = without_shortcuts(network, randomised(network, (8, 8, 3)))
    _, updates = plain.apply(merged, images_like((8, 8, 3)), train=True, mutable=['batch_stats'])
    assert jax.tree.structure(updates['batch_stats']) == jax.tree.structure(merged['batch_stats'])


def test_a_plain_network_is_refused():
    network = Network((1, 1), width=4, num_classes=7, stem_kind='cifar', shortcuts='none')
    with pytest.raises(UserError, match='no shortcut'):
        without_shortcuts(network, randomised(network, (8, 8, 3)))
