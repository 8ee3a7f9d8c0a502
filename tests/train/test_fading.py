"""Runs whose shortcuts fade: what they begin as, and that what is left of them has no shortcut."""

import pytest

from jointrd_jax.deploy import fold as folding
from jointrd_jax.errors import UserError
from jointrd_jax.method.layers import FADING
from jointrd_jax.report.evaluate import evaluate
from jointrd_jax.runs import run_directory, weights
from jointrd_jax.train import loop
from tests.support.faults import Stopping, small_config, stop

ROAD = dict(model__shortcuts='fading', model__init='identity', model__activation='prelu', model__slope=0.5)


@pytest.fixture(scope='module')
def faded(tmp_path_factory):
    path = tmp_path_factory.mktemp('faded') / 'run'
    loop.run(small_config('plain', **ROAD, ema__decay=0.5), path)
    return path


def test_what_a_run_leaves_has_no_shortcut(faded, tmp_path):
    run = run_directory.load(faded)
    assert run.network.shortcuts == run.config.model.shortcuts == 'none'
    assert run_directory.read_config(faded).model.shortcuts == 'fading' and run.summary.shortcuts == 'none'
    assert run_directory.digest(run.variables) == run.summary.student_digest  # by which a report finds its exports
    assert 'add' not in folding.fold(run.network, run.variables, run.data.image_shape).operators()
    assert evaluate(faded)['top1'] == run.summary.last_top1
    weights.save(tmp_path / 'network.safetensors', run.network, run.variables)
    assert weights.load(tmp_path / 'network.safetensors')[0].shortcuts == 'none'


def test_a_plain_network_goes_on_from_it(faded, tmp_path, quiet):
    settings = {**ROAD, 'model__shortcuts': 'none', 'model__init': 'random'}
    rate = dict(optimizer__learning_rate=1e-30, optimizer__weight_decay=0.0)
    summary = loop.run(small_config('plain', **settings, **rate, epochs=1, restore=str(faded)), tmp_path / 'run', quiet)
    assert summary.shortcuts == 'none'
    with pytest.raises(UserError, match='shortcut'):
        loop.run(
            small_config('plain', **ROAD | {'model__init': 'random'}, restore=str(faded)), tmp_path / 'again', quiet
        )


def test_shortcuts_are_kept_while_they_have_not_faded(tmp_path):
    stop(small_config('plain', **ROAD), tmp_path / 'run', Stopping(13))
    run = run_directory.load(tmp_path / 'run')
    assert run.network.shortcuts == run.config.model.shortcuts == 'fading'
    assert 0 < float(run.variables['batch_stats']['stage1_block1']['fading'][FADING]) < 1
    assert 'add' in folding.fold(run.network, run.variables, run.data.image_shape).operators()


def test_shortcuts_that_fade_to_the_end_of_a_run_are_gone_there(tmp_path, quiet):
    loop.run(small_config('plain', **ROAD, model__anneal_fraction=1.0), tmp_path / 'run', quiet)
    for which in ('last', 'best'):
        assert run_directory.load(tmp_path / 'run', which).network.shortcuts == 'none'


def test_from_the_teachers_weights_it_begins_as_its_teacher(tmp_path, quiet):
    """At a rate of almost nothing the shortcuts alone change, so that what they give is what the accuracy loses.

    The first epoch's evaluation is the best one, but of a network with shortcuts: it is not the best of what is left.
    """
    deep = dict(model__stage_sizes=(3, 3))  # where blocks do more beside their shortcuts than in place of them
    loop.run(small_config('resnet', **deep, epochs=6), tmp_path / 'teacher', quiet)
    settings = dict(
        **deep, epochs=4, model__init='teacher', teacher__path=str(tmp_path / 'teacher'),
        optimizer__learning_rate=1e-30, optimizer__weight_decay=0.0,
    )  # fmt: skip
    whole, gone = (
        loop.run(small_config('jointrd', **settings, model__shortcuts=shortcuts), tmp_path / shortcuts, quiet)
        for shortcuts in ('all', 'fading')
    )
    teacher = run_directory.load(tmp_path / 'teacher').summary.last_top1
    assert abs(whole.last_top1 - teacher) < 5 < teacher - gone.last_top1
    tops = [line['top1'] for line in run_directory.read_metrics(tmp_path / 'fading' / run_directory.METRICS)]
    assert tops[0] > max(tops[2:]) == gone.best_top1 and gone.best_epoch > 2
    assert run_directory.load(tmp_path / 'fading', 'best').network.shortcuts == 'none'
