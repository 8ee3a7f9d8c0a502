"""Runs of every procedure, and what the trainer refuses."""

import json
import shutil

import jax
import numpy as np
import pytest

from jointrd_jax import config as config_lib, data
from jointrd_jax.errors import UserError
from jointrd_jax.method import joint
from jointrd_jax.plan.programs import of_run
from jointrd_jax.runs import from_config, run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint_places import DIRECTORY
from jointrd_jax.train import loop, step as step_lib
from tests.support.configs import tiny_config

SUMMARY = {
    'procedure', 'dataset', 'model', 'shortcuts', 'seed', 'epochs', 'steps', 'best_top1', 'last_top1', 'last_top5',
    'teacher_top1', 'wall_seconds', 'images_per_second', 'student_digest', 'versions',
}  # fmt: skip


@pytest.fixture(scope='session')
def teacher_run(tmp_path_factory):
    path = tmp_path_factory.mktemp('runs') / 'resnet'
    loop.run(tiny_config(procedure='resnet'), path)
    return path


def metrics(path):
    return [json.loads(line) for line in (path / run_directory.METRICS).read_text().splitlines()]


@pytest.mark.parametrize('procedure', config_lib.PROCEDURES)
def test_every_procedure(procedure, teacher_run, tmp_path, quiet):
    config = tiny_config(procedure=procedure, distill__weight=1e-3, eval_hybrids=True)
    if procedure in config_lib.NEEDS_TEACHER:
        config.teacher.path = str(teacher_run)
    summary = loop.run(config, tmp_path / 'run', quiet)
    written = json.loads((tmp_path / 'run' / summary_lib.SUMMARY).read_text())
    assert written.keys() >= SUMMARY
    assert summary == summary_lib.read(tmp_path / 'run')
    lines = metrics(tmp_path / 'run')
    assert [line['epoch'] for line in lines] == [1, 2]
    assert all(np.isfinite(v) for line in lines for v in line.values())
    assert lines[-1]['top1'] == summary.last_top1
    assert max(line['top1'] for line in lines) == summary.best_top1

    terms = {name for name in lines[-1] if '/' in name}
    mixed = procedure in ('jointrd', 'jointrd_scratch')
    assert ('ce/path1' in terms) == ('path1_top1' in lines[-1]) == mixed
    assert ('distill/student' in terms) == (mixed or procedure == 'feature_kd')
    assert ('kl/student' in terms) == (procedure in ('logit_kd', 'resnet_kd'))
    assert (summary.teacher_top1 is not None) == (procedure not in ('resnet', 'plain'))

    last = run_directory.load(tmp_path / 'run')
    assert run_directory.digest(last.variables) == summary.student_digest
    assert last.network.shortcuts == ('all' if procedure in config_lib.TRAINS_RESNET else 'none')
    assert last.data.classes == tuple('0123456789')


def test_teacher_is_trained_first_and_reused(tmp_path, quiet):
    config = tiny_config(epochs=1)
    summary = loop.run(config, tmp_path / 'run', quiet)
    first = summary_lib.read(tmp_path / 'run' / 'teacher')
    assert first.procedure == 'resnet' and summary.teacher_top1 == first.last_top1
    shutil.rmtree(tmp_path / 'run' / DIRECTORY)
    (tmp_path / 'run' / summary_lib.SUMMARY).unlink()
    again = loop.run(config, tmp_path / 'run', quiet)
    assert summary_lib.read(tmp_path / 'run' / 'teacher') == first
    assert again.student_digest == summary.student_digest


def test_finished_run_is_not_run_again(teacher_run, quiet):
    before = (teacher_run / summary_lib.SUMMARY).read_bytes()
    summary = loop.run(tiny_config(procedure='resnet'), teacher_run, quiet)
    assert 'is finished already' in quiet.lines
    assert (teacher_run / summary_lib.SUMMARY).read_bytes() == before and summary == summary_lib.read(teacher_run)


def test_workdir_of_another_config_is_refused(teacher_run):
    with pytest.raises(UserError, match=r'another config \(seed: 0 there, 5 now\)'):
        loop.run(tiny_config(procedure='resnet', seed=5), teacher_run)


def test_resume_equals_an_undisturbed_run(tmp_path, quiet):
    """Stopped in the middle of an epoch, with a checkpoint there, and started again."""
    config = tiny_config(procedure='plain', checkpoint__every_steps=15)
    whole = loop.run(config, tmp_path / 'whole', quiet)

    class Stop(Exception):
        pass

    class Stopping(type(quiet)):
        def step(self, step):
            if step == 52:
                raise Stop

    with pytest.raises(Stop):
        loop.run(config, tmp_path / 'parts', Stopping('test'))
    parts = loop.run(config, tmp_path / 'parts', quiet)
    assert 'continuing from step 45' in quiet.lines
    assert parts.student_digest == whole.student_digest

    def timeless(path):
        return [
            {k: v for k, v in line.items() if k not in ('images_per_second', 'input_late')} for line in metrics(path)
        ]

    assert timeless(tmp_path / 'parts') == timeless(tmp_path / 'whole')


def test_restore_starts_from_another_runs_weights(teacher_run, tmp_path, quiet):
    config = tiny_config(procedure='resnet', restore=str(teacher_run), optimizer__learning_rate=1e-9, epochs=1)
    summary = loop.run(config, tmp_path / 'run', quiet)
    before = jax.tree.leaves(run_directory.load(teacher_run).variables['params'])
    after = jax.tree.leaves(run_directory.load(tmp_path / 'run').variables['params'])
    for a, b in zip(before, after):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert summary.steps == 40
    with pytest.raises(UserError, match='shortcuts all .* needs shortcuts none'):
        loop.run(tiny_config(procedure='plain', restore=str(teacher_run)), tmp_path / 'other', quiet)
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    'overrides, message',
    [
        (dict(model__width=8), r'has width 4 .* needs width 8'),
        (dict(model__stage_sizes=(1, 2)), r'stage_sizes \(1, 1\) \(depth 6\).*\(1, 2\) \(depth 8\)'),
        (dict(model__stem='imagenet'), 'stem_kind cifar .* needs stem_kind imagenet'),
    ],
)
def test_unfitting_teacher_is_refused(teacher_run, tmp_path, overrides, message):
    config = tiny_config(teacher__path=str(teacher_run), **overrides)
    with pytest.raises(UserError, match=message):
        loop.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_teacher_below_its_record_is_refused(teacher_run, tmp_path):
    shutil.copytree(teacher_run, tmp_path / 'teacher')
    path = tmp_path / 'teacher' / summary_lib.SUMMARY
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, 'last_top1': summary['last_top1'] + 3}))
    with pytest.raises(UserError, match='its summary records'):
        loop.run(tiny_config(teacher__path=str(tmp_path / 'teacher')), tmp_path / 'run')


def test_teacher_that_is_none(tmp_path):
    with pytest.raises(UserError, match='is not a run directory'):
        loop.run(tiny_config(teacher__path=str(tmp_path)), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_teacher_for_other_classes_is_refused(teacher_run, tmp_path, monkeypatch):
    load = data.digits.load

    def renamed(config):
        dataset = load(config)
        dataset.classes = ('zero', *dataset.classes[1:])
        return dataset

    monkeypatch.setattr(data.digits, 'load', renamed)
    with pytest.raises(UserError, match=f"teacher {teacher_run} calls class 0 '0' but the dataset .* calls it 'zero'"):
        loop.run(tiny_config(teacher__path=str(teacher_run)), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_one_stage_needs_taps(tmp_path):
    with pytest.raises(UserError, match='one stage .* set config.mix.taps'):
        loop.run(tiny_config(model__stage_sizes=(2,)), tmp_path / 'run')


def test_every_epoch_has_its_line_and_some_an_evaluation(tmp_path, quiet):
    loop.run(tiny_config(procedure='plain', epochs=3, eval_every=2), tmp_path / 'run', quiet)
    lines = metrics(tmp_path / 'run')
    assert [line['epoch'] for line in lines] == [1, 2, 3] and all(line['loss'] > 0 for line in lines)
    assert ['top1' in line for line in lines] == [False, True, True]


def test_batches_must_divide_and_fit(tmp_path):
    with pytest.raises(UserError, match='batch_size=30 is not a multiple of the 4 devices; 28 or 32 is'):
        loop.run(tiny_config(batch_size=30), tmp_path / 'run')
    with pytest.raises(UserError, match='more than the 1297 training images'):
        loop.run(tiny_config(batch_size=1300), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_runs_of_all_seeds_share_their_programs():
    """Else each seed of a comparison compiles anew."""
    config = tiny_config(procedure='jointrd_scratch')
    dataset = data.load(config)

    def lowered(seed):
        config.seed = seed
        programs = of_run(config, dataset, step_lib.make_mesh(jax.devices()[:2]))
        return [program.function.lower(*program.arguments).as_text() for program in programs]

    assert lowered(1) == lowered(0)


@pytest.mark.parametrize('also', [True, False])
def test_a_planned_evaluation_has_the_frozen_teacher_where_the_runs_has(also):
    """With eval_hybrids, also of a procedure without mixed paths."""
    config = tiny_config(procedure='logit_kd', eval_hybrids=also)
    *_, evaluation = of_run(config, data.load(config), step_lib.make_mesh(jax.devices()[:1]))
    assert (evaluation.arguments[1] is not None) == also


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, quiet):
    config = tiny_config(procedure='plain', optimizer__learning_rate=1e30, optimizer__schedule='constant')
    with pytest.raises(
        UserError, match=r'(ce/student|gradient_norm) is not finite at step \d+; the(re is no| last good) checkpoint'
    ):
        loop.run(config, tmp_path / 'run', quiet)
    assert not (tmp_path / 'run' / summary_lib.SUMMARY).exists()


def test_same_losses_on_one_device_and_on_four():
    """Five steps, the same global batch, global BatchNorm, augmentation on."""
    shape = dict(model__stage_sizes=(1, 1, 1), batch_norm='global')
    config = tiny_config(procedure='jointrd_scratch', distill__weight=1e-3, **shape)
    dataset = data.load(config)

    def losses(devices):
        mesh = jax.make_mesh(
            (devices,), (step_lib.AXIS,), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,)
        )
        student = from_config.student(config, 10, step_lib.AXIS)
        method = from_config.method(config, student)
        networks = step_lib.networks_for(student, from_config.resnet(config, 10, step_lib.AXIS), method)
        optimizer = from_config.optimizer(config, from_config.learning_rate(config, student, 40))
        state = jax.jit(
            lambda: step_lib.initial_state(
                jax.random.key(0), networks, method, dataset.image_shape, optimizer, trains_teacher=True
            ),
            out_shardings=step_lib.replicated(mesh),
        )()
        device_step = step_lib.make_device_step(
            networks, method, optimizer, 1, lambda epoch: joint.mixing_weight(epoch, 0.5, 3)
        )
        step = step_lib.make_train_step(dataset, device_step, mesh)
        device_arrays = step_lib.replicate(dataset.device_arrays, mesh)
        found = []
        for batch, _ in zip(dataset.train_batches(0), range(5)):
            state, report = step(state, None, device_arrays, np.int32(0), batch)
            found.append({name: float(value) for name, value in report['epoch_sums'].items()})
        return found

    for one, four in zip(losses(1), losses(4)):
        for name in one:
            np.testing.assert_allclose(four[name], one[name], rtol=2e-4, err_msg=name)
