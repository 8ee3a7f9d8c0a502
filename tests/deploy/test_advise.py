import numpy as np
import pytest
from rich.console import Console

from jointrd_jax.deploy import advise, ask_targets, candidates, graph, liveness, savings
from jointrd_jax.deploy.ask_targets import Request
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network, create
from tests.support.networks import images_like

INT8 = ('in_place', 1)


@pytest.fixture(scope='module')
def resnet50():
    network = create('resnet50', num_classes=10, width=16)
    return candidates.folded(network, (224, 224, 3))


def test_removing_shortcuts_from_a_graph_is_the_plain_network():
    network = Network((1, 2), True, 4, 3, 'cifar', 'all')
    made = candidates.folded(network, (8, 8, 3))
    bare = advise.without(made, range(3))
    plain = network.clone(shortcuts='none')
    variables = savings.random_variables(network, (8, 8, 3))
    images = images_like((8, 8, 3), 2)

    def without_shortcuts(layers):
        return {name: leaves for name, leaves in layers.items() if not name.startswith('shortcut')}

    shared = {kind: {k: without_shortcuts(v) for k, v in tree.items()} for kind, tree in variables.items()}
    wanted = plain.apply(shared, images).logits
    np.testing.assert_allclose(graph.apply(bare, images), wanted, rtol=1e-4, atol=1e-5)
    assert 'add' not in bare.operators()


def test_four_of_sixteen_blocks_give_all_that_resnet50_can_save(resnet50):
    found = advise.advise(resnet50, INT8)
    assert found.plain == (0, 1, 2, 3)
    assert found.peak == found.least == liveness.peak(found.graph, *INT8) < found.full
    assert found.shortcuts == ','.join(['none'] * 4 + ['all'] * 12)


@pytest.mark.parametrize('model', [('nothing', 1), ('in_place', 1), ('accumulate', 4)])
def test_no_smaller_choice_fits(model):
    made = candidates.folded(Network((1, 2, 1), True, 4, 3, 'cifar', 'all'), (16, 16, 3))
    for step in advise.steps(made, model):
        budget = step.peak
        fitting = [
            blocks
            for blocks in range(2**4)
            if liveness.peak(advise.without(made, [b for b in range(4) if blocks >> b & 1]), *model) <= budget
        ]
        assert min(blocks.bit_count() for blocks in fitting) == len(step.plain)


def test_a_budget_that_nothing_fits_says_where_it_peaks(resnet50):
    with pytest.raises(UserError, match=r'no choice of shortcuts fits: .* still need 343 KiB .*the budget is 100 KiB'):
        advise.advise(resnet50, INT8, 100 * 1024)


def test_the_command_names_the_override(capsys):
    console = Console(width=120)
    found = ask_targets.advise(Request(shapes=['50'], stem='cifar', width=4), None, console)
    out = capsys.readouterr().out
    assert f'--config.model.shortcuts={found.shortcuts}' in out
    for text, message in (('12 apples', 'is not a size such as'), ('-1KiB', 'is not a size'), ('nan', 'is not a size')):
        with pytest.raises(UserError, match=message):
            ask_targets.advise(Request(shapes=['50'], stem='cifar', width=4), text, console)
    with pytest.raises(UserError, match='for one network'):
        ask_targets.advise(Request(shapes=['18', '50']), None, console)
    assert ask_targets.bytes_of('1.5MiB') == ask_targets.bytes_of('1536 KiB') == 1536 * 1024
