"""An interrupted run ends as an undisturbed one: the same weights, metrics lines and best checkpoint."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jointrd_jax import errors
from jointrd_jax.data import digits
from jointrd_jax.runs import provenance, run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.system import files
from jointrd_jax.train import history, loop
from tests.support.configs import QUICK_FLAGS, ROOT
from tests.support.faults import LONG, Stopping, outcome, run_with_stops, small_config, stop

# procedure: config; the long form (see faults.LONG) has all of them
PROCEDURES = {
    'plain': {
        'model__reparam': 'dirac',
        'model__activation': 'annealed',
        'model__slope': 0.5,
        'model__shortcuts': 'fading',
        'ema__decay': 0.9,
    },
    'jointrd_scratch': {'distill__weight': 1e-3, 'eval_hybrids': True, 'mix__eta': 0.0, 'mix__fraction': 0.5},
}
MORE = {  # 'jointrd' in CI: on streamed images, in tests/data, and while its teacher trains, below
    'jointrd': {'eval_hybrids': True, 'mix__eta': 0.0, 'mix__fraction': 0.5},
    'resnet': {},
    'feature_kd': {'distill__weight': 1e-3},
    'logit_kd': {},
    'resnet_kd': {},
}
# mid-epoch; the last step of an epoch, whose evaluation is put off; long: the first, at a checkpoint, the very last
STOPS = (13, 20, 1, 16, 40) if LONG else (13, 20)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A finished ResNet run."""
    path = tmp_path_factory.mktemp('teacher') / 'run'
    loop.run(small_config('resnet'), path)
    return str(path)


@pytest.mark.parametrize('procedure', [*PROCEDURES, *(MORE if LONG else ())])
def test_stopped_and_continued(procedure, teacher, tmp_path, quiet):
    config = small_config(procedure, teacher__path=teacher, **(PROCEDURES | MORE)[procedure])
    loop.run(config, tmp_path / 'undisturbed', quiet)
    _, stops = run_with_stops(config, tmp_path / 'stopped', *STOPS)
    assert stops == len(STOPS)
    assert outcome(tmp_path / 'stopped') == outcome(tmp_path / 'undisturbed')


def test_stopped_at_every_step(tmp_path, quiet):
    config = small_config(epochs=1, batch_size=128 if LONG else 320)
    loop.run(config, tmp_path / 'undisturbed', quiet)
    steps = range(1, 11 if LONG else 5)
    _, stops = run_with_stops(config, tmp_path / 'stopped', *steps)
    assert stops == len(steps)
    assert outcome(tmp_path / 'stopped') == outcome(tmp_path / 'undisturbed')


def test_several_steps_at_once_are_the_same_steps_and_are_stopped_between(tmp_path, quiet):
    """They are taken by another program, so its rounding is its own; the groups are the same after a stop."""
    config = small_config(log__gradients=1)
    loop.run(config, tmp_path / 'single', quiet)
    config.steps_per_dispatch = 3
    quiet.step = (reached := []).append
    loop.run(config, tmp_path / 'undisturbed', quiet)
    assert reached[:6] == [3, 4, 5, 8, 9, 10]  # gradients are looked at before steps 5 and 10, a checkpoint is after 8
    single, grouped = (outcome(tmp_path / name)['metrics'] for name in ('single', 'undisturbed'))
    for one, many in zip(single, grouped, strict=True):
        assert one.keys() == many.keys()
        np.testing.assert_allclose([many[name] for name in one], list(one.values()), rtol=0.02, atol=0.02)
    _, stops = run_with_stops(config, tmp_path / 'stopped', 3, 13, 28)
    assert stops == 3
    assert outcome(tmp_path / 'stopped') == outcome(tmp_path / 'undisturbed')


def test_stopped_while_the_teacher_trains(tmp_path, quiet, monkeypatch):
    config = small_config('jointrd', epochs=1)
    loop.run(config, tmp_path / 'undisturbed', quiet)
    with monkeypatch.context() as patch:
        patch.setattr(type(quiet), 'child', lambda *_: Stopping(7))  # the one made for the teacher
        stop(config, tmp_path / 'stopped', quiet, 'step 7 of 20')
    assert not (tmp_path / 'stopped' / 'teacher' / summary_lib.SUMMARY).exists()
    loop.run(config, tmp_path / 'stopped', quiet)
    for part in ('', 'teacher'):
        assert outcome(tmp_path / 'stopped' / part) == outcome(tmp_path / 'undisturbed' / part)


def test_checkpoints_of_stops_displace_no_scheduled_one(tmp_path):
    config = small_config(epochs=2)
    run_with_stops(config, tmp_path / 'run', 17, 18, 19)
    assert Checkpoints(tmp_path / 'run').steps() == [40, 32]


def test_metrics_are_restored_from_the_checkpoint(tmp_path):
    config, path = small_config(), tmp_path / 'run'
    stop(config, path, Stopping(30))
    whole = (path / run_directory.METRICS).read_text()
    assert len(whole.splitlines()) == 1
    for step, text in enumerate(('', whole[:-20], whole + '{"epoch": 2, "st', whole + whole, '\x00' * 50), 31):
        (path / run_directory.METRICS).write_text(text)
        stop(config, path, Stopping(step))
        assert (path / run_directory.METRICS).read_text() == whole, text


def test_changed_config_is_refused(tmp_path, quiet):
    stop(small_config(), tmp_path, Stopping(20))
    before = sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.rglob('*'))
    fields = {
        'seed': 1,
        'optimizer.learning_rate': 0.3,
        'epochs': 3,
        'model.width': 8,
        'batch_size': 32,
        'mix.eta': 0.1,
    }
    for field, value in fields.items():
        config = small_config(**{field.replace('.', '__'): value})
        with pytest.raises(errors.UserError, match=f'another config .*{field}: .* there, .* now'):
            loop.run(config, tmp_path, quiet)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.rglob('*')) == before


def test_harmless_changes_are_allowed(tmp_path, quiet):
    loop.run(small_config(), tmp_path / 'undisturbed', quiet)
    stop(small_config(), tmp_path / 'run', Stopping(20))
    loop.run(small_config(checkpoint__every_steps=3, checkpoint__keep=5), tmp_path / 'run', quiet)
    assert outcome(tmp_path / 'run') == outcome(tmp_path / 'undisturbed')


def test_what_parts_the_steps_taken_at_once_is_not_harmless(tmp_path, quiet):
    stop(small_config(steps_per_dispatch=3), tmp_path / 'run', Stopping(3))
    for field, value in (('checkpoint.every_steps', 7), ('log.gradients', 1), ('steps_per_dispatch', 1)):
        config = small_config(**{'steps_per_dispatch': 3, field.replace('.', '__'): value})
        with pytest.raises(errors.UserError, match=f'another config .*{field}: '):
            loop.run(config, tmp_path / 'run', quiet)


def test_another_config_is_refused_without_config_json_too(tmp_path, quiet):
    stop(small_config(), tmp_path / 'run', Stopping(20))
    (tmp_path / 'run' / run_directory.CONFIG).unlink()
    with pytest.raises(errors.UserError, match='another config .*seed: 0 there, 5 now'):
        loop.run(small_config(seed=5), tmp_path / 'run', quiet)


def test_what_a_run_can_have_seen_is_a_history():
    seen = history.History(
        last={'step': 40, 'top1': 9.5}, lines=['{"epoch": 1}'],
        gradient_samples=[{'gradient/stem/student': float('inf')}],
        rollbacks=[{'step': 3, 'term': 'loss', 'to': 0}], changes=['data classes: ("\u200b",) then'], bad=[7],
    )  # fmt: skip
    kept = json.loads(json.dumps(dataclasses.asdict(seen)))
    assert history.History.from_json(kept, 'here') == seen


def test_changed_data_is_refused(tmp_path, quiet, monkeypatch):
    """One pixel of one image."""
    stop(small_config(), tmp_path / 'run', Stopping(20))
    images, labels = digits.read()
    images[7, 3, 3] += 1
    monkeypatch.setattr(digits, 'read', lambda: (images, labels))
    with pytest.raises(errors.UserError, match=r'would not continue as it began .*data contents: \w+ then, \w+ now'):
        loop.run(small_config(), tmp_path / 'run', quiet)


def test_changed_compiler_flags_are_refused(tmp_path, quiet, monkeypatch):
    """They change the rounding; the number of virtual devices among them is judged as that of devices."""
    stop(small_config(), tmp_path / 'run', Stopping(20))
    monkeypatch.setenv('XLA_FLAGS', f'{os.environ["XLA_FLAGS"]} --xla_cpu_enable_fast_math=true')
    with pytest.raises(errors.UserError, match='XLA_FLAGS: .* now'):
        loop.run(small_config(), tmp_path / 'run', quiet)


def test_another_number_of_devices(tmp_path):
    """Four here, one there: the same result but for rounding if BatchNorm is over all of them, else refused."""
    run, local = tmp_path / 'run', small_config(batch_norm='local')
    stop(small_config(batch_norm='global'), run, Stopping(20))
    four = Checkpoints(run).meta(20)['provenance']
    one = four | {'devices': '1 x cpu'}
    with pytest.raises(errors.UserError, match=r'began \(devices: 4 x cpu then, 1 x cpu now\)'):
        provenance.check(local, four, one, run)
    script = f"""
from pathlib import Path
from jointrd_jax.runs import provenance, run_directory
from jointrd_jax.train import loop
run = Path({str(run)!r})
loop.run(run_directory.read_config(run), run)
"""
    flags = {'XLA_FLAGS': f'{QUICK_FLAGS} --xla_force_host_platform_device_count=1'}
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, env=os.environ | flags
    )
    assert done.returncode == 0, done.stderr
    assert summary_lib.read(run).changes_on_resume == ['devices: 4 x cpu then, 1 x cpu now']


def test_changed_code_is_refused(tmp_path, quiet, monkeypatch):
    """Not by editing the package under test: by a checkpoint that says it was made by other code."""
    stop(small_config(), tmp_path / 'run', Stopping(20))
    real = provenance.provenance
    changed = {'package jax': '0.1.2', 'code of jointrd_jax.losses': 'abc', 'devices': '7 x cpu'}
    monkeypatch.setattr(provenance, 'provenance', lambda dataset: real(dataset) | changed)
    with pytest.raises(errors.UserError, match='losses.*devices: .*7 x cpu now; package jax: .*accept_changes'):
        loop.run(small_config(), tmp_path / 'run', quiet)
    summary = loop.run(small_config(checkpoint__accept_changes=True), tmp_path / 'run', quiet)
    assert [change.split(':')[0] for change in summary.changes_on_resume] == sorted(changed)


def test_finished_run_is_left_alone(tmp_path, quiet):
    config = small_config(epochs=1)
    loop.run(config, tmp_path, quiet)
    files_before = {p: files.sha256(p) for p in tmp_path.rglob('*') if p.is_file()}
    loop.run(config, tmp_path, quiet)
    assert {p: files.sha256(p) for p in tmp_path.rglob('*') if p.is_file()} == files_before
    assert 'finished already' in quiet.lines
    assert json.loads((tmp_path / summary_lib.SUMMARY).read_text())['rollbacks'] == []
