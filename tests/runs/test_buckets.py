"""Runs in an object store: real servers on loopback, kill -9, refusals and losses of the connection."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

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
from tests.support.faults import SMALL, Stopping, outcome, run_with_stops, small_config, stop
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
    """(workdir, *flags) -> a training process as a user starts it, with `small_config()`; none outlives the test."""
    started = []

    def start(workdir, *flags: str, **environment: str) -> subprocess.Popen:
        shrink = {**SMALL, 'procedure': 'plain'}
        fields = (f'--config.{name.replace("__", ".")}={value}' for name, value in shrink.items())
        started.append(
            subprocess.Popen(
                [sys.executable, '-m', 'jointrd_jax.main', '--config=digits', f'--workdir={workdir}', *fields, *flags],
                cwd=ROOT, env={**os.environ, **environment}, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """A run of `small_config()` on the disk."""
    path = tmp_path_factory.mktemp('undisturbed') / 'run'
    loop.run(small_config(), path, QuietReporter('undisturbed'))
    return path


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        status = process.wait(timeout=BOUND)
        assert status == 0, process.stderr.read()


def wait_for(condition, *processes: subprocess.Popen) -> None:
    until = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < until and all(process.poll() is None for process in processes)


def kill(*processes: subprocess.Popen) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_in_a_save_and_continued_from_the_bucket(s3, command, undisturbed):
    workdir = buckets.place('s3://runs/killed')
    remote = buckets.filesystem(workdir)

    def is_sending() -> bool:
        names = [name.split('/', 4)[3:] for name in remote.find(f'{workdir}/checkpoints') if name.count('/') > 3]
        steps, sealed = {step for step, _ in names}, {step for step, name in names if name == SEAL}
        return bool(sealed) and bool(steps - sealed)

    process = command(workdir)
    wait_for(is_sending, process)
    kill(process)
    sealed = Checkpoints(workdir).steps()
    assert sealed and Checkpoints(workdir).newest_intact() == sealed[0]
    finish(command(workdir))
    assert outcome(workdir) == outcome(undisturbed)
    assert Checkpoints(workdir).steps() == Checkpoints(undisturbed).steps() == [40, 32]
    assert not remote.exists(f'{workdir}/.lock')


def test_a_run_in_a_bucket_is_that_on_a_disk(bucket, undisturbed):
    workdir = buckets.place(f'{bucket}/stopped')
    _, stops = run_with_stops(small_config(log__tensorboard=1), workdir, 10, 30)
    assert stops == 2 and outcome(workdir) == outcome(undisturbed)
    events = buckets.names(workdir / 'tensorboard')
    assert len(events) == 3 and all('tfevents' in name for name in events)


def test_two_hosts_write_one_checkpoint(s3, command, tmp_path):
    def start(workdir):
        joined = (f'--coordinator=127.0.0.1:{stores.free_port()}', '--num_processes=2', '--config.epochs=1')
        flags = f'{QUICK_FLAGS} --xla_force_host_platform_device_count=2'
        return [command(workdir, *joined, f'--process_id={number}', XLA_FLAGS=flags) for number in range(2)]

    workdir = buckets.place('s3://runs/two')
    hosts = start(workdir)
    wait_for(lambda: Checkpoints(workdir).steps(), *hosts)
    kill(*hosts)
    finish(*start(workdir))
    assert Checkpoints(workdir).steps() == [20, 16]
    assert run_directory.load(workdir).summary.devices.startswith('4 x')  # and its digest is that of the weights
    finish(*start(tmp_path / 'run'))
    assert outcome(workdir) == outcome(tmp_path / 'run')


def test_damage_in_a_bucket_is_seen_and_named(s3):
    workdir, config = buckets.place('s3://runs/damaged'), small_config()
    stop(config, workdir, Stopping(30))
    steps = Checkpoints(workdir).steps()
    victim = buckets.find(workdir / 'checkpoints' / str(steps[0]), 'manifest.ocdbt')[0]
    buckets.put(victim, b'something else')
    reporter = QuietReporter('continued')
    loop.run(config, workdir, reporter)
    said = reporter.lines.replace('\n', ' ')
    assert f'{victim} is not what was written: going back to the checkpoint of step {steps[1]}' in said


def test_what_is_used_elsewhere_comes_from_the_bucket(gs, tmp_path):
    place = 'gs://runs/used'
    loop.run(small_config('resnet', epochs=1), f'{place}/teacher', QuietReporter('teacher'))
    convert(f'{place}/teacher', f'{place}/teacher.safetensors')
    for teacher in ('teacher', 'teacher.safetensors'):
        taught = dict(teacher__path=f'{place}/{teacher}', teacher__least_top1=0.0)  # hardly trained
        student = small_config('logit_kd', epochs=1, **taught)
        loop.run(student, tmp_path / f'by-{teacher}', QuietReporter('student'))
    loop.run(small_config('resnet', restore=f'{place}/teacher', epochs=1), tmp_path / 'on', QuietReporter('restored'))
    options = export.Options(('safetensors',))
    export.export(f'{place}/teacher', f'{place}/out', options, say=lambda _: None)
    assert sorted(buckets.names(buckets.place(f'{place}/out'))) == ['README.md', 'export.json', 'network.safetensors']
    with pytest.raises(UserError, match='is not an empty directory; choose another'):
        export.export(f'{place}/teacher', f'{place}/out', options, say=lambda _: None)
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
    with stores.running('s3', INITIAL_NO_AUTH_ACTION_COUNT='100') as store:
        store.make_bucket('runs')
        ask_who = urllib.request.Request(f'{store.url}/moto-api/reset-auth', b'0', {'Content-Type': 'text/plain'})
        urllib.request.urlopen(ask_who).close()  # from now on
        refused(small_config(), 's3://runs/run', 'no permission')


def test_unknown_schemes_and_no_bucket():
    for text in ('az://bucket/run', 'http://host/run'):
        scheme = text.partition('://')[0]
        said = f'{text}: {scheme}:// is not supported; give a local path, gs://BUCKET/... or s3://BUCKET/...'
        with pytest.raises(UserError, match=re.escape(said)):
            buckets.place(text)
    with pytest.raises(UserError, match='names no bucket'):
        buckets.place('s3:///run')


class Losing(QuietReporter):
    """Cuts the connection to the store when the run reaches a step."""

    def __init__(self, wire, step):
        super().__init__('losing')
        self.wire, self.at = wire, step

    def step(self, step: int) -> None:
        if step == self.at:
            self.wire.cut()


def test_connection_lost_in_a_save_and_found_again(s3, undisturbed, monkeypatch):
    wire = stores.Wire(s3)
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{wire.port}')
    stores.forget()
    workdir = buckets.place('s3://runs/lost')
    with pytest.raises(UserError, match=r'(cannot write|Could not connect).*same command continues') as error:
        loop.run(small_config(), workdir, Losing(wire, 24))
    assert '\n' not in str(error.value)
    wire.mend()
    assert Checkpoints(workdir).newest_intact() in (8, 16)
    loop.run(small_config(), workdir, QuietReporter('found'))
    assert outcome(workdir) == outcome(undisturbed)
    wire.cut()
    stores.forget()


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
