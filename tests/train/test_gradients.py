"""The two origins of the student's gradient add up to it."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jointrd_jax.method import joint
from jointrd_jax.method.joint import Method
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import run_directory
from jointrd_jax.train import gradients, setup, step as step_lib
from jointrd_jax.train.job import Job
from tests.support.faults import small_config

MIX = 0.3


@pytest.fixture(scope='module')
def measured():
    """Gradients by origin, their mixture, and the whole gradient of the same loss, with distillation."""
    shape = dict(stage_sizes=(1, 1, 1), width=4, num_classes=3, stem_kind='cifar')
    teacher, student = Network(**shape), Network(**shape, shortcuts='none')
    method = Method(taps=(1, 2), distill_weight=1e-3, average_paths=True)
    networks = step_lib.networks_for(student, teacher, method)
    labels = jnp.array([0, 1, 2, 0])

    @jax.jit
    def measure(key):
        images = jax.random.normal(key, (4, 4, 4, 1))
        variables = teacher.init(key, images)
        outputs = teacher.apply(variables, images)
        own = student.init(jax.random.fold_in(key, 1), images)
        maps = dict.fromkeys(joint.path_names(method.taps), outputs.features)
        connectors = networks.connectors.init(key, maps, train=False)
        params = {'student': own['params'], 'connectors': connectors['params']}
        batch_stats = {'student': own['batch_stats'], 'connectors': connectors['batch_stats']}
        arguments = dict(
            networks=networks, method=method,
            teacher=joint.TeacherView(variables, step_lib.margin(teacher, variables)).with_outputs(outputs),
        )  # fmt: skip
        parts = gradients.by_origin(params, batch_stats, images, labels, MIX, **arguments)
        whole = jax.grad(lambda p: joint.joint_loss(p, batch_stats, images, labels, mix=MIX, **arguments)[0])(params)
        return parts, gradients.mixture(parts), whole['student']

    return measure(jax.random.key(0))


def test_origins_add_up_to_the_gradient(measured):
    parts, _, whole = measured
    for teacher, student, total in zip(*map(jax.tree.leaves, (parts['teacher'], parts['student'], whole))):
        np.testing.assert_allclose(np.asarray(teacher) + student, total, rtol=2e-4, atol=1e-6)


def test_teacher_reaches_only_what_lies_before_a_tap(measured):
    found = {name: float(value) for name, value in measured[1].items()}
    for stage in ('stem', 'stage1', 'stage2'):
        assert 0 < found[f'gradient/{stage}/share'] < 1 and abs(found[f'gradient/{stage}/cosine']) <= 1
        norms = found[f'gradient/{stage}/teacher'], found[f'gradient/{stage}/student']
        assert found[f'gradient/{stage}/share'] == pytest.approx(norms[0] / sum(norms), rel=1e-5)
    for stage in ('stage3', 'head'):
        assert found[f'gradient/{stage}/teacher'] == found[f'gradient/{stage}/share'] == 0


def test_runs_write_what_they_measured(watched_run):
    lines = [json.loads(line) for line in (watched_run / run_directory.METRICS).read_text().splitlines()]
    assert all(0 < line['gradient/stage1/share'] < 1 for line in lines)
    alone = json.loads((watched_run / 'teacher' / run_directory.METRICS).read_text().splitlines()[0])
    origins = {name.split('/')[-1] for name in alone if name.startswith('gradient/')}
    assert origins == {'student'}, 'a network that trains alone has one origin'


def test_the_gradient_measured_is_that_of_the_taps_drawn(tmp_path, quiet, monkeypatch):
    config = small_config('jointrd_scratch', model__stage_sizes=(1, 1, 1), mix__num_taps=1, mix__tap_sets=2)
    monkeypatch.setattr(gradients, 'make_measure', lambda data, networks, method, *_: lambda *arguments: method.taps)
    job = Job(config, tmp_path, setup.make(config, tmp_path), quiet)
    measured = [job.measure_gradients(step) for step in range(10)]
    assert measured == [job.method_at(step).taps for step in range(10)] and set(measured) == {(1,), (2,)}


def test_probe_looks_at_the_epochs_asked_for():
    config = ml_collections.ConfigDict({'epochs': 7, 'log': {'gradients': 3}})
    probe = gradients.Probe(config, 10, lambda step, offset: {'epoch': step // 10 + offset})
    seen = {}
    for step in range(70):
        if probe.is_due(step):
            probe.record(step, 0.5)
        if step % 10 == 9:
            seen[step // 10 + 1] = len(probe.seen), probe.take().get('epoch')
    assert {epoch: value for epoch, (samples, value) in seen.items() if samples} == {1: 0.5, 3: 2.5, 6: 5.5, 7: 6.5}
    assert {samples for samples, _ in seen.values()} == {0, gradients.SAMPLES_PER_EPOCH}


def test_an_origin_without_a_gradient_has_no_angle():
    probe = gradients.Probe(ml_collections.ConfigDict({'epochs': 1, 'log': {'gradients': 1}}), 4, dict)
    for stage, teacher in (('stem', 2.0), ('head', 0.0)):
        names = {'student': 1.0, 'teacher': teacher, 'share': 0.5, 'cosine': 0.0}
        probe.seen.append({f'gradient/{stage}/{name}': value for name, value in names.items()})
    probe.seen = [probe.seen[0] | probe.seen[1]]
    assert [name for name in probe.take() if name.endswith('cosine')] == ['gradient/stem/cosine']


def test_probe_is_off_by_default():
    config = ml_collections.ConfigDict({'epochs': 1, 'log': {'gradients': 0}})
    probe = gradients.Probe(config, 4, lambda *_: {})
    assert not any(probe.is_due(step) for step in range(4)) and probe.take() == {}
