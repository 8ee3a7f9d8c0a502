"""What a student starts with, and what of it is kept: its teacher's weights, an average over the steps."""

import json

import jax
import numpy as np
import pytest

from jointrd_jax import config as config_lib
from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory
from jointrd_jax.train import loop, teacher as teacher_lib
from jointrd_jax.train.job import Job
from tests.support.configs import TINY, shipped_config
from tests.support.faults import small_config


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'run'
    loop.run(small_config('resnet', epochs=1), path)
    return run_directory.load(path)


def test_a_student_starts_with_its_teachers_weights_where_it_has_the_same(teacher, tmp_path, quiet):
    config = small_config(
        'jointrd', epochs=1, batch_size=512, teacher__path=str(teacher.path), model__init='teacher',
        model__activation='prelu', optimizer__learning_rate=1e-30,
    )  # fmt: skip
    loop.run(config, tmp_path / 'run', quiet)
    params = run_directory.load(tmp_path / 'run').variables['params']
    theirs = teacher.variables['params']
    np.testing.assert_array_equal(
        params['stage1_block1']['conv2']['kernel'], theirs['stage1_block1']['conv2']['kernel']
    )
    np.testing.assert_array_equal(params['head']['kernel'], theirs['head']['kernel'])
    assert 'act1' in params['stage1_block1'] and 'shortcut_conv' not in params['stage2_block1']


def test_a_teacher_that_is_trained_first_is_an_ordinary_resnet(tmp_path, quiet, monkeypatch):
    """However its student is made, which may start with its weights."""
    started, initial_state = [], Job.initial_state
    monkeypatch.setattr(
        Job, 'initial_state', lambda job, student=None: started.append(student) or initial_state(job, student)
    )
    config = small_config(
        'jointrd', epochs=1, batch_size=512, model__init='teacher', model__reparam='dirac', model__activation='prelu',
        model__slope_layers=3, optimizer__rate_layers=3,
    )  # fmt: skip
    loop.run(config, tmp_path / 'run', quiet)
    first = run_directory.load(tmp_path / 'run' / 'teacher')
    ordinary = loop.run(small_config('resnet', epochs=1, batch_size=512), tmp_path / 'resnet', quiet)
    assert first.summary.student_digest == ordinary.student_digest
    of_teacher, of_student, of_resnet = started
    assert of_teacher is None and of_resnet is None
    np.testing.assert_array_equal(of_student['params']['head']['kernel'], first.variables['params']['head']['kernel'])


@pytest.mark.parametrize('init', ['random', 'identity', 'teacher'])
@pytest.mark.parametrize('procedure', config_lib.NEEDS_TEACHER)
def test_what_a_student_may_be_its_teacher_may_inherit(procedure, init):
    config = small_config(procedure, model__init=init, distill__weight=1e-3)
    config_lib.validate(config)
    config_lib.validate(teacher_lib.recipe(config))


@pytest.mark.parametrize('procedure', ['plain', 'resnet'])
def test_a_student_starts_near_the_identity_and_a_resnet_as_ever(procedure, tmp_path, quiet):
    """By the recipe, whose rule for the depth sets the student's slopes and rate and leaves a ResNet's as they are."""
    small = dict(TINY, procedure=procedure, epochs=1, batch_size=512, model__stage_sizes=(1, 1))
    rule = dict(model__slope_layers=3, optimizer__rate_layers=3, optimizer__learning_rate=1e-10)
    constant = dict(optimizer__schedule='constant', optimizer__warmup_fraction=0.0)
    config = shipped_config('near_identity', **small, **rule, **constant)
    loop.run(config, tmp_path / 'run', quiet)
    run = run_directory.load(tmp_path / 'run')
    block = run.variables['params']['stage1_block1']
    centre = np.diagonal(block['conv2']['kernel'][1, 1])
    assert (abs(centre - 1).max() < 0.5) == (procedure == 'plain'), centre
    assert ('act1' in block) == (procedure == 'plain')
    if procedure == 'plain':
        np.testing.assert_allclose(block['act1']['slope'], 0.5, atol=1e-6)  # 1 - 3 / 6
    (line,) = map(json.loads, (tmp_path / 'run' / run_directory.METRICS).read_text().splitlines())
    assert line['learning_rate'] == pytest.approx(0.5e-10 if procedure == 'plain' else 1e-10)


@pytest.mark.parametrize(
    'wrong, message',
    [
        (dict(restore='somewhere'), 'exclude each other'),
        (dict(model__reparam='dirac'), 'two ways to start near the identity'),
    ],
)
def test_two_starts_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(small_config('plain', model__init='identity', **wrong))


@pytest.mark.parametrize('procedure, restore', [('plain', ''), ('jointrd_scratch', ''), ('jointrd', 'somewhere')])
def test_where_there_is_no_teacher_to_start_from_is_refused(procedure, restore):
    with pytest.raises(UserError, match=r'config\.model\.init=teacher'):
        config_lib.validate(small_config(procedure, restore=restore, model__init='teacher'))


def test_the_average_is_what_is_evaluated_and_kept(tmp_path, quiet):
    """With so short a memory the average is all but the last weights; with a long one it is others."""
    found = {}
    for decay in (0.0, 1e-6, 0.999):
        path = tmp_path / str(decay)
        loop.run(small_config(ema__decay=decay), path, quiet)
        found[decay] = run_directory.load(path).variables
    for a, b in zip(*(jax.tree.leaves(found[decay]) for decay in (0.0, 1e-6)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    kernels = [found[decay]['params']['stage1_block1']['conv1']['kernel'] for decay in (0.0, 0.999)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
