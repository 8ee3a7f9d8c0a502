"""Runs in an object store: real servers on loopback, kill -9, refusals and losses of the connection."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import fsspec
import pytest

from jointrd_jax.deploy import export
from jointrd_jax.deploy.convert import convert
from jointrd_jax.errors import UserError
from jointrd_jax.report import page
from jointrd_jax.runs import run_directory
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.runs.seal import SEAL
from jointrd_jax.system import buckets, files
from jointrd_jax.train import loop
from tests.support import buckets as stores
from tests.support.configs import QUICK_FLAGS, ROOT, QuietReporter
from tests.support.faults import Stopping, outcome, run_with_stops, small_config, stop
from tests.support.runs import digits_run

BOUND = 300  # seconds


@pytest.fixture(scope='module')
def s3():
    with stores.running('s3') as store:
        store.make_bucket('runs')
        yield store


@pytest.fixture(scope='module')
def gs():
    with stores.running('gs') as store:
        store.make_bucket('runs')
        yield store


@pytest.fixture(params=['s3', 'gs'])
def bucket(request):
    """The URL of a bucket."""
    return f'{request.getfixturevalue(request.param).scheme}://runs'


@pytest.fixture
def command():
    """(workdir, *flags) -> a training process as a user starts it, on one device; none outlives the test."""
    started = []

    def start(workdir, *flags: str) -> subprocess.Popen:
        shrink = ('model.stage_sizes=1,1', 'model.width=4', 'procedure=plain', 'epochs=2', 'batch_size=64',
                  'eval_batch_size=512', 'checkpoint.every_steps=8')  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, '-m', 'jointrd_jax.main', '--config=digits', f'--workdir={workdir}',
                 *(f'--config.{field}' for field in shrink), *flags],
                cwd=ROOT, env={**os.environ, 'XLA_FLAGS': QUICK_FLAGS}, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        error = process.communicate(timeout=BOUND)[1]
        assert process.returncode == 0, error


def test_killed_in_a_save_and_continued_from_the_bucket(s3, command, tmp_path):
    finish(command(tmp_path / 'run'))
    workdir = buckets.place('s3://runs/killed')
    process, until = command(workdir), time.monotonic() + BOUND
    remote, unsealed = buckets.filesystem(workdir), False
    while not unsealed:
        assert process.poll() is None and time.monotonic() < until
        names = [name.split('/checkpoints/')[1].split('/', 1) for name in remote.find(f'{workdir}/checkpoints')]
        steps, sealed = {step for step, _ in names}, {step for step, name in names if name == SEAL}
        unsealed = bool(sealed) and bool(steps - sealed)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sealed = Checkpoints(workdir).steps()
    assert sealed and Checkpoints(workdir).newest_intact() == sealed[0]
    finish(command(workdir))
    assert outcome(workdir) == outcome(tmp_path / 'run')
    assert Checkpoints(workdir).steps() == Checkpoints(tmp_path / 'run').steps()
    assert not remote.exists(f'{workdir}/.lock')


def test_a_run_in_a_bucket_is_that_on_a_disk(bucket, tmp_path):
    config = small_config(log__tensorboard=1)
    loop.run(config, tmp_path / 'run', QuietReporter('disk'))
    workdir = buckets.place(f'{bucket}/stopped')
    _, stops = run_with_stops(config, workdir, 10, 30)
    assert stops == 2
    assert outcome(workdir) == outcome(tmp_path / 'run')
    events = buckets.names(workdir / 'tensorboard')
    assert len(events) == 3 and all('tfevents' in name for name in events)


def test_two_hosts_write_one_checkpoint(s3, command, tmp_path):
    def start(workdir):
        joined = (f'--coordinator=127.0.0.1:{stores.free_port()}', '--num_processes=2', '--config.batch_norm=global')
        return [command(workdir, *joined, f'--process_id={number}') for number in range(2)]

    finish(*start(tmp_path / 'run'))
    workdir = buckets.place('s3://runs/two')
    hosts, until = start(workdir), time.monotonic() + BOUND
    while not Checkpoints(workdir).steps():
        assert time.monotonic() < until and all(host.poll() is None for host in hosts)
    for host in hosts:
        host.send_signal(signal.SIGKILL)
        host.communicate()
    finish(*start(workdir))
    assert outcome(workdir) == outcome(tmp_path / 'run')


def test_damage_in_a_bucket_is_seen_and_named(bucket):
    workdir = buckets.place(f'{bucket}/damaged')
    config = small_config()
    stop(config, workdir, Stopping(30))
    steps = Checkpoints(workdir).steps()
    victim = next(path for path in buckets.find(workdir / 'checkpoints' / str(steps[0]), 'manifest.ocdbt'))
    buckets.put(victim, b'something else')
    reporter = QuietReporter('continued')
    loop.run(config, workdir, reporter)
    assert f'{victim} is not what was written: going back to the checkpoint of step {steps[1]}' in reporter.lines


def test_what_is_used_elsewhere_comes_from_the_bucket(bucket, tmp_path):
    place = f'{bucket}/used'
    config = small_config('resnet')
    loop.run(config, f'{place}/teacher', QuietReporter('teacher'))
    convert(f'{place}/teacher', f'{place}/teacher.safetensors')
    for teacher in ('teacher', 'teacher.safetensors'):
        student = small_config('feature_kd', teacher__path=f'{place}/{teacher}', epochs=1)
        loop.run(student, tmp_path / f'by-{teacher}', QuietReporter('student'))
    loop.run(small_config('resnet', restore=f'{place}/teacher', epochs=1), tmp_path / 'on', QuietReporter('restored'))
    export.export(f'{place}/teacher', f'{place}/out', export.Options(('safetensors',)), say=lambda _: None)
    assert sorted(buckets.names(buckets.place(f'{place}/out'))) == ['README.md', 'export.json', 'network.safetensors']
    with pytest.raises(UserError, match='is not an empty directory; choose another'):
        export.export(f'{place}/teacher', f'{place}/out', say=lambda _: None)
    written = page.write([place], f'{place}/report.html', evaluate=False)
    assert written['runs'] == 1 and 'network.safetensors' in buckets.place(f'{place}/report.html').read_text()


def refused(config, workdir, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as error:
        loop.run(config, workdir, QuietReporter('refused'))
    assert '\n' not in str(error.value) and str(workdir) in str(error.value)


def test_no_such_bucket(s3, gs):
    for scheme in ('s3', 'gs'):
        refused(small_config(), f'{scheme}://nowhere/run', 'there is no such bucket')


def test_no_credentials(s3, monkeypatch):
    monkeypatch.delenv('AWS_ACCESS_KEY_ID')
    monkeypatch.delenv('AWS_SECRET_ACCESS_KEY')
    monkeypatch.setenv('HOME', '/nonexistent')
    stores.forget()
    refused(small_config(), 's3://runs/nobody', 'Unable to locate credentials')
    stores.forget()


def test_no_permission():
    with stores.running(
        's3', INITIAL_NO_AUTH_ACTION_COUNT='1'
    ) as store:  # from its second request on it asks who we are
        store.make_bucket('runs')
        refused(small_config(), 's3://runs/run', 'no permission')


def test_unknown_schemes_and_no_bucket():
    for text in ('az://bucket/run', 'http://host/run'):
        with pytest.raises(UserError, match=re.escape(f'{text}: places are directories and gs://BUCKET/... and s3://')):
            buckets.place(text)
    with pytest.raises(UserError, match='names no bucket'):
        buckets.place('s3:///run')


class Losing(QuietReporter):
    """Kills the server when the run reaches a step."""

    def __init__(self, store, step):
        super().__init__('losing')
        self.store, self.at = store, step

    def step(self, step: int) -> None:
        if step == self.at:
            self.store.kill()


def test_connection_lost_in_a_save_and_found_again(tmp_path, monkeypatch):
    config = small_config()
    loop.run(config, tmp_path / 'run', QuietReporter('disk'))
    with stores.running('gs') as store:
        monkeypatch.setattr(fsspec.get_filesystem_class('gs'), 'retries', 2)  # its waits double
        workdir = buckets.place(f'{store.make_bucket("runs")}/lost')
        with pytest.raises(
            UserError, match=r'cannot write the checkpoint of step 24 in gs://.*the same command continues'
        ):
            loop.run(config, workdir, Losing(store, 24))
        store.start()
        stores.forget()
        assert Checkpoints(workdir).steps()[0] == 16
        loop.run(config, workdir, QuietReporter('found'))
        assert outcome(workdir) == outcome(tmp_path / 'run')


def test_a_lease_is_exclusive_and_a_dead_owner_is_seen(bucket, monkeypatch):
    monkeypatch.setattr(buckets, 'RENEW_SECONDS', 0.1)
    monkeypatch.setattr(buckets, 'WATCH_SECONDS', 0.5)
    monkeypatch.setattr(buckets, 'DEAD_SECONDS', 1.5)
    place = buckets.place(f'{bucket}/owned')
    lock = place / buckets.LEASE
    with files.locked(place):
        before = lock.read_text()
        files.write_atomically(lock, before.replace(str(os.getpid()), '1'))  # so that it is not seen to be ours
        stranger = buckets.Lease(place)
        with pytest.raises(UserError, match='in use by process'):
            stranger.take()
    assert not lock.exists()
    files.write_atomically(lock, 'process 7 on host elsewhere\nmark 3\n')
    with files.locked(place):  # nobody renewed it
        assert f'process {os.getpid()} on host' in lock.read_text()
        files.write_atomically(lock, 'process 7 on host elsewhere\nmark 3\n')
        with pytest.raises(UserError, match='was taken over by another process'):
            buckets.check_owned(place / 'checkpoints')
    assert lock.exists()  # that of its new owner


def test_what_no_host_of_this_machine_holds_is_free(bucket):
    place = buckets.place(f'{bucket}/dead')
    ended = subprocess.Popen(['true'])
    ended.wait()
    files.write_atomically(place / buckets.LEASE, f'process {ended.pid} on host {os.uname().nodename}\nmark 0\n')
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.locked(place))


def test_imported_weights_become_a_run_in_a_bucket(bucket):
    network, variables = digits_run(f'{bucket}/imported')
    loaded = run_directory.load(f'{bucket}/imported')
    assert loaded.network == network and run_directory.digest(loaded.variables) == run_directory.digest(variables)
