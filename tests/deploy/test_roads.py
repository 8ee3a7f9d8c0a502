"""Networks of every road in every format that is exported (tests of folding alone: test_fold.py)."""

import numpy as np
import pytest

from jointrd_jax.deploy import fold as folding, graph, onnx_graph, runner, stablehlo, tflite
from jointrd_jax.method.architectures import ACTIVATIONS
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import weights
from tests.support.networks import images_like, randomised, relative_difference

SHAPE = (16, 16, 3)
NETWORKS = {
    'branches and prelu': dict(reparam='branches', activation='prelu', slope=0.9),
    'dirac and leaky': dict(reparam='dirac', activation='leaky', slope=0.6),
    'fading and prelu': dict(shortcuts='fading', activation='prelu', slope=0.5),
    'groups and annealed': dict(bottleneck=True, groups=2, activation='annealed', slope=0.5),
}
FORMATS = {
    'onnx': (lambda made: onnx_graph.model(made, {}), runner.load_onnx),
    'tflite': (tflite.model, runner.load_tflite),
    'stablehlo': (lambda made: stablehlo.model(made, 'cpu'), runner.load_stablehlo),
}


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('road', NETWORKS)
def test_what_is_exported_computes_the_folded_network(road, form, tmp_path):
    network = Network((1, 2), width=4, num_classes=5, stem_kind='cifar', **{'shortcuts': 'none', **NETWORKS[road]})
    made = folding.fold(network, randomised(network, SHAPE), SHAPE)
    write, load = FORMATS[form]
    (tmp_path / 'network').write_bytes(write(made))
    images = images_like(SHAPE, batch=3)
    found = load(str(tmp_path / 'network'))(images)
    assert relative_difference(found, np.asarray(graph.apply(made, images))) < 2e-6


@pytest.mark.parametrize('shortcuts, activation', [*(('all', name) for name in ACTIVATIONS), ('fading', 'prelu')])
def test_a_weight_file_holds_every_activation_and_shortcuts_that_have_not_faded(shortcuts, activation, tmp_path):
    network = Network((1, 1), False, 4, 5, 'cifar', shortcuts, activation=activation, slope=0.5)
    variables = randomised(network, SHAPE)
    weights.save(tmp_path / 'network.safetensors', network, variables)
    found, read, *_ = weights.load(tmp_path / 'network.safetensors')
    images = images_like(SHAPE, batch=3)
    np.testing.assert_array_equal(found.apply(read, images).logits, network.apply(variables, images).logits)


def test_weight_files_of_one_network_are_equal(tmp_path):
    network = Network((1, 1), width=4, num_classes=5, stem_kind='cifar')
    variables = randomised(network, SHAPE)
    for i in range(12):
        weights.save(tmp_path / f'{i}.safetensors', network, variables)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
