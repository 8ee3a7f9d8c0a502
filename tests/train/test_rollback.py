"""A loss that is not finite: stop, skip the step, or go back with a lower rate, the same after every interruption."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from jointrd_jax import data, errors
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.system import files
from jointrd_jax.train import assembly as assembly_lib, loop, rollback, step as step_lib
from tests.support.faults import outcome, run_with_stops, small_config

# Far too high; some rollbacks of a factor of 1000 bring it into reach.
ROLLBACK = dict(
    optimizer__learning_rate=1e15, optimizer__schedule='constant', optimizer__warmup_fraction=0.0,
    nan__action='rollback', nan__factor=0.001, nan__rollbacks=8,
)  # fmt: skip


def test_stop_names_step_and_term_and_keeps_the_checkpoints(tmp_path, quiet):
    config = small_config(optimizer__learning_rate=1e15, optimizer__warmup_fraction=0.0)
    with pytest.raises(
        errors.UserError,
        match=r'(ce/student|gradient_norm) is not finite at step \d+; (the last good checkpoint, of|there is)',
    ):
        loop.run(config, tmp_path, quiet)
    assert not (tmp_path / summary_lib.SUMMARY).exists()
    fault = files.read_json(tmp_path / run_directory.NOT_FINITE)
    assert fault['step'] >= 0 and fault['term'] in ('ce/student', 'gradient_norm')
    for step in Checkpoints(tmp_path).steps():  # whatever was saved is good
        restored = run_directory.load(tmp_path)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.variables)), step


@pytest.mark.parametrize(
    ('fields', 'advised'),
    [
        ({}, 'lower config.optimizer.learning_rate or set config.optimizer.clip_norm'),
        ({'optimizer__clip_norm': 1.0}, 'lower config.optimizer.learning_rate, or help a deep student by config.model'),
        ({'optimizer__clip_norm': 1.0, 'procedure': 'resnet'}, 'lower config.optimizer.learning_rate'),
    ],
)
def test_what_is_done_already_is_not_advised(fields, advised):
    said = rollback.advice(small_config(**fields))
    assert said.startswith(advised) and ('clip_norm' in said) == (not fields)
    assert ('deep' in said) == ('deep' in advised)


def test_the_term_at_fault_is_named(tmp_path, quiet):
    """A student whose head alone is broken: the mixed paths and the teacher are fine."""
    config = small_config('jointrd_scratch', epochs=1)
    loop.run(config, tmp_path / 'whole', quiet)
    files.write_json(tmp_path / 'whole' / run_directory.NOT_FINITE, {'step': 3, 'term': 'loss'})
    loop.run(config, tmp_path / 'whole', quiet)
    assert not (tmp_path / 'whole' / run_directory.NOT_FINITE).exists()  # gone when the run is continued
    whole = run_directory.load(tmp_path / 'whole')
    head = jax.tree.map(lambda leaf: leaf * np.nan, whole.variables['params']['head'])
    broken = {**whole.variables, 'params': {**whole.variables['params'], 'head': head}}
    run_directory.save(
        tmp_path / 'broken', config, broken, whole.data, dataclasses.replace(whole.summary, student_digest=None)
    )
    config.restore = str(tmp_path / 'broken')
    with pytest.raises(errors.NotFinite, match='^ce/student is not finite at step 0; there is no checkpoint yet'):
        loop.run(config, tmp_path / 'run', quiet)


def test_every_term_is_found_as_itself():
    """Through jit, which sorts the keys of dicts."""
    names = ('loss', 'ce/path1', 'ce/path2', 'ce/student', 'distill/path1', 'kl/student', 'ce/teacher', 'gradient_norm')
    never = {'step': np.int32(-1), 'term': np.int32(-1)}
    state = step_lib.TrainState(
        **dict.fromkeys(('params', 'batch_stats', 'opt_state', 'teacher', 'rate_scale')),
        step=np.int32(7), epoch_sums=step_lib.zero_sums(names), fault=never,
    )  # fmt: skip
    for name in names:
        sums_up = {'loss': np.nan} if '/' in name else {}
        terms = dict.fromkeys(names, 1.0) | sums_up | {name: np.nan}
        fault = jax.jit(step_lib.first_fault)(state, terms)
        assert step_lib.diagnosis_order(names)[int(fault['term'])] == name and int(fault['step']) == 7


def test_rollback_lowers_the_rate_until_it_works_and_interruptions_change_nothing(tmp_path, quiet):
    config = small_config(**ROLLBACK)
    summary = loop.run(config, tmp_path / 'undisturbed', quiet)
    rollbacks = summary.rollbacks
    assert rollbacks and all(r['to'] <= r['step'] for r in rollbacks)
    assert 'learning rate x 0.001' in quiet.lines
    last = json.loads((tmp_path / 'undisturbed' / run_directory.METRICS).read_text().splitlines()[-1])
    assert last['learning_rate'] == pytest.approx(1e15 * 0.001 ** len(rollbacks), rel=1e-5)
    _, stops = run_with_stops(config, tmp_path / 'stopped', 3, 13, 29)
    assert stops == 3
    assert outcome(tmp_path / 'stopped') == outcome(tmp_path / 'undisturbed')
    assert summary_lib.read(tmp_path / 'stopped').rollbacks == rollbacks


def test_rollbacks_are_limited(tmp_path, quiet):
    config = small_config(**{**ROLLBACK, 'nan__factor': 0.999, 'nan__rollbacks': 2})
    with pytest.raises(errors.UserError, match='is not finite at step .* after 2 rollbacks'):
        loop.run(config, tmp_path, quiet)


def overflowing_at_times(tmp_path, quiet):
    """A config that goes on from weights whose loss or gradient is more than float32 holds for some of the batches."""
    config = small_config(epochs=1)
    loop.run(config, tmp_path / 'whole', quiet)
    whole = run_directory.load(tmp_path / 'whole')
    assembly = assembly_lib.of(config, data.load(config))
    assembly.dataset.close()
    images = next(assembly.dataset.train_batches(0))
    images, _ = assembly.dataset.preprocess(assembly.dataset.device_arrays, images, jax.random.key(0))
    outputs, _ = whole.network.apply(whole.variables, images, train=True, mutable=['batch_stats'])
    large = 2.5 * float(np.ptp(outputs.logits, axis=-1).max())
    head = jax.tree.map(lambda leaf: leaf / large * np.finfo(np.float32).max, whole.variables['params']['head'])
    broken = {**whole.variables, 'params': {**whole.variables['params'], 'head': head}}
    run_directory.save(
        tmp_path / 'large', config, broken, whole.data, dataclasses.replace(whole.summary, student_digest=None)
    )
    return small_config(restore=str(tmp_path / 'large'), optimizer__clip_norm=1.0)


def test_steps_whose_gradient_is_not_finite_are_skipped_and_counted(tmp_path, quiet):
    config = overflowing_at_times(tmp_path, quiet)
    with pytest.raises(errors.NotFinite):
        loop.run(config, tmp_path / 'stop', quiet)
    config.nan.action = 'skip'
    summary = loop.run(config, tmp_path / 'skip', quiet)
    lines = [json.loads(line) for line in (tmp_path / 'skip' / run_directory.METRICS).read_text().splitlines()]
    assert 0 < summary.skipped_steps < summary.steps
    assert summary.skipped_steps == sum(line['skipped_steps'] for line in lines)
    assert f'{lines[0]["skipped_steps"]} steps skipped' in quiet.lines
    assert all(np.isfinite([line['loss'], line['gradient_norm']]).all() for line in lines)
    trained = run_directory.load(tmp_path / 'skip').variables
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))
    _, stops = run_with_stops(config, tmp_path / 'stopped', 3, 13, 29)
    assert stops == 3 and outcome(tmp_path / 'stopped') == outcome(tmp_path / 'skip')


@pytest.mark.parametrize('fault', [True, False])
def test_a_skipped_step_changes_nothing_but_what_counts_steps(fault):
    """So the learning rate falls as it does without skipping; a sum that overflows is no fault."""
    config = small_config('jointrd_scratch', nan__action='skip')
    assembly = assembly_lib.of(config, data.load(config))
    before = jax.jit(assembly.make_state)(0)
    after = jax.tree.map(lambda leaf: leaf + 1, before)
    after = after.replace(epoch_sums=dict.fromkeys(before.epoch_sums, np.float32(np.inf)))
    terms = {'loss': np.float32(np.nan if fault else 1e38)}
    found = jax.jit(step_lib.taken_if_finite, static_argnums=3)(before, after, terms, 20)
    counts = [
        int(count) for _, count in optax.tree_utils.tree_get_all_with_path((found.opt_state, found.teacher), 'count')
    ]
    assert counts == [1, 1] and int(found.step) == 1 and int(found.skipped) == fault
    kept = before if fault else after
    for part in ('params', 'batch_stats'):
        assert jax.tree.all(jax.tree.map(np.array_equal, getattr(found, part), getattr(kept, part)))
    assert all(np.isfinite(total) for total in found.epoch_sums.values())


def test_a_learning_teacher_whose_gradient_is_not_finite_is_named(tmp_path, quiet):
    """Its loss is a number, but its gradient is more than float32 holds: after the step its weights would be none."""
    config = small_config('jointrd_scratch', nan__action='skip', optimizer__clip_norm=1.0)
    assembly = assembly_lib.of(config, data.load(config))
    state = jax.jit(assembly.make_state)(0)
    view = state.teacher.view
    network, params = assembly.networks.teacher, dict(view.variables['params'])
    params['head'] = jax.tree.map(lambda leaf: leaf * 1e30, params['head'])
    first = dict(params[network.block_names[0]])  # a small map made large again: its gradient is 1e10 times the loss's
    first['conv1'] = jax.tree.map(lambda leaf: leaf * 1e-10, first['conv1'])
    first['bn1'] = jax.tree.map(lambda leaf: leaf * 3e7, first['bn1'])
    params[network.block_names[0]] = first
    view = view._replace(variables={**view.variables, 'params': params})
    state = state.replace(teacher=state.teacher.replace(view=view))
    mesh = step_lib.make_mesh()
    batch = step_lib.shard_batches([next(assembly.dataset.train_batches(0))], mesh)
    step = assembly.make_train_step(assembly.method.without_mixing(), mesh)  # else the mixed paths tell
    _, report = step(step_lib.replicate(state, mesh), None, assembly.dataset.device_arrays, 0, batch)
    assert int(report['skipped']) == 1 and int(report['fault']['step']) == -1


def test_an_epoch_of_skipped_steps_alone_ends_the_run(tmp_path, quiet):
    config = small_config(**{**ROLLBACK, 'nan__action': 'skip'})
    with pytest.raises(
        errors.NotFinite, match='is not finite at step 39, as at every step of its epoch; the last good'
    ):
        loop.run(config, tmp_path, quiet)
    assert files.read_json(tmp_path / run_directory.NOT_FINITE)['step'] == 39


def test_where_nothing_is_skipped_the_steps_are_those_without_it(tmp_path, quiet):
    for action in ('stop', 'skip'):
        config = small_config('jointrd_scratch', epochs=1, nan__action=action)
        summary = loop.run(config, tmp_path / action, quiet)
        assert summary.skipped_steps == 0
    assert outcome(tmp_path / 'stop')['digest'] == outcome(tmp_path / 'skip')['digest']


def test_where_checkpoints_are_matters_to_a_rollback(tmp_path, quiet):
    config = small_config(**ROLLBACK)
    run_with_stops(config, tmp_path)
    config.checkpoint.every_steps = 5
    with pytest.raises(errors.UserError, match=r'checkpoint.every_steps: 8 there, 5 now'):
        loop.run(config, tmp_path, quiet)
