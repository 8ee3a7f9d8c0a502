"""Faults of the world around a run: signals, kill -9, full disks, missing permission, damage, a second run."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jointrd_jax import errors
from jointrd_jax.deploy import export
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.runs.seal import META, seal
from jointrd_jax.system import files, signals
from jointrd_jax.train import loop, trackers
from tests.support.configs import QUICK_FLAGS, ROOT
from tests.support.faults import LONG, Stopping, outcome, small_config, stop

BOUND = 300  # seconds; everything here takes a few on a quiet machine


@pytest.fixture
def command():
    """(workdir, *overrides) -> a training process as a user starts it, on one device; none outlives the test."""
    started = []

    def start(workdir: Path, *overrides: str, flags: tuple[str, ...] = ()) -> subprocess.Popen:
        small = ('model.stage_sizes=1,1', 'model.width=4', 'procedure=plain', 'checkpoint.every_steps=13', *overrides)
        started.append(
            subprocess.Popen(
                [sys.executable, '-m', 'jointrd_jax.main', '--config=configs/digits.py', f'--workdir={workdir}',
                 *(f'--config.{override}' for override in small), *flags],
                cwd=ROOT, env={**os.environ, 'XLA_FLAGS': QUICK_FLAGS}, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, process: subprocess.Popen) -> None:
    until = time.monotonic() + BOUND
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)


def checkpointed(workdir: Path) -> bool:
    return bool(Checkpoints(workdir).steps())


# Signals.


def test_first_signal_checkpoints_second_run_is_refused_and_the_same_command_continues(tmp_path, command):
    process = command(tmp_path, 'epochs=200')
    wait_for(lambda: checkpointed(tmp_path), process)
    with pytest.raises(errors.UserError, match=f'in use by process {process.pid} on host {os.uname().nodename};'):
        with files.locked(tmp_path):
            pass
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=BOUND)
    assert process.returncode == signals.STOPPED_STATUS == 75, error
    assert 'SIGTERM: finishing the step and writing a checkpoint' in error and 'the same command continues' in error
    step = int(error.split('stopped at step ')[1].split()[0])
    assert Checkpoints(tmp_path).newest_intact() == step
    process = command(tmp_path, 'epochs=200')
    wait_for(lambda: Checkpoints(tmp_path).steps()[0] > step, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=BOUND) == 75


def test_second_signal_ends_at_once(tmp_path):
    """Sent while the main thread is inside a long call (here: blocked for ever on a lock without a timeout)."""
    code = (
        'import signal, os, threading, time; from jointrd_jax.system import signals\n'
        'with signals.handled(), signals.work_at_stake():\n'
        '    print("ready", flush=True)\n'
        '    import ctypes; ctypes.CDLL(None).select(0, None, None, None, None)\n'
        '    while True: ctypes.CDLL(None).select(0, None, None, None, None)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    assert 'once more ends at once' in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=BOUND) == 128 + signal.SIGTERM
    process.communicate()


def test_signal_with_nothing_at_stake_ends_at_once(tmp_path):
    code = (
        'from jointrd_jax.system import signals; import ctypes\n'
        'with signals.handled():\n'
        '    print("ready", flush=True)\n'
        '    while True: ctypes.CDLL(None).select(0, None, None, None, None)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=BOUND) == 75
    assert 'the same command continues' in process.communicate()[1]


def test_a_stop_with_slow_steps_is_two_steps_away_and_leaves_no_shared_memory():
    """Real steps, slow because the images are large; how many are taken is asserted, not how long they are."""
    ended = subprocess.run(
        [sys.executable, 'scripts/stop_latency.py', '--side', '128'], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, 'XLA_FLAGS': QUICK_FLAGS, 'PYTHONPATH': str(ROOT)}, timeout=BOUND,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found['status'] == 75 and found['steps_after'] <= 6 and not found['leaked'], found


def test_a_signal_to_one_of_two_hosts_stops_both_at_one_step(tmp_path, command):
    """JAX's own preemption service would swallow the signal (`hosts.start` turns it off)."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    joined = (f'--coordinator=localhost:{port}', '--num_processes=2')
    hosts = [command(tmp_path, 'epochs=900', flags=(*joined, f'--process_id={number}')) for number in range(2)]
    wait_for(lambda: checkpointed(tmp_path), hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    errors_said = [process.communicate(timeout=BOUND)[1] for process in hosts]
    assert [process.returncode for process in hosts] == [75, 75], errors_said
    steps = {error.split('stopped at step ')[1].split()[0] for error in errors_said}
    assert steps == {str(Checkpoints(tmp_path).newest_intact())}


def test_signal_while_the_last_checkpoint_is_written(tmp_path):
    """The steps are done, the summary is not there: the run finishes."""
    script = f"""
import os, signal, sys, time
from pathlib import Path
from tests.support.faults import small_config
from jointrd_jax.runs import checkpoint
from jointrd_jax.system import signals
from jointrd_jax.train import loop
seal = checkpoint.seal
def interrupted(directory):
    if directory.name.startswith('40.'):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    seal(directory)
checkpoint.seal = interrupted
with signals.handled():
    loop.run(small_config(), Path({str(tmp_path / 'run')!r}))
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 0 and 'SIGTERM: finishing' in done.stderr, done.stderr
    assert summary_lib.read(tmp_path / 'run') and Checkpoints(tmp_path / 'run').newest_intact() == 40


def test_a_save_that_never_ends_ends_the_process(tmp_path):
    """In bounded time, with one line, though its threads cannot be joined; the same command continues."""
    script = f"""
import sys, time
from tests.support.faults import small_config
from jointrd_jax import cli
from jointrd_jax.runs import checkpoint
from jointrd_jax.train import loop
seal = checkpoint.seal
checkpoint.seal = lambda directory: time.sleep(1000) if directory.name.startswith('24.') else seal(directory)
checkpoint.SAVE_SECONDS = 3
with cli.errors_in_one_line():
    loop.run(small_config(), {str(tmp_path / 'run')!r})
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 2 and re.fullmatch(
        r'error: a checkpoint in .* is not on disk after \d+ s: .*; the same command continues\n', done.stderr
    ), done.stderr
    loop.run(small_config(), tmp_path / 'run')


def test_a_signal_takes_what_is_half_made_with_it(tmp_path):
    script = f"""
import os, signal, time
from pathlib import Path
from jointrd_jax.system import files, signals
with signals.handled(), files.atomic_directory(Path({str(tmp_path / 'export')!r})) as temporary:
    (temporary / 'network.onnx').write_text('half')
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(100)
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 75, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_is_one_line():
    script = (
        'import jax.numpy as jnp\nfrom jointrd_jax import cli\n'
        'with cli.errors_in_one_line(): jnp.zeros(2**46).block_until_ready()'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 2 and done.stderr.startswith('error: out of memory; lower config.batch_size'), done.stderr
    assert len(done.stderr.splitlines()) == 1


# kill -9.


def test_killed_at_random_moments(tmp_path):
    """The quick form; scripts/torture.py is the long one."""
    counts = ('--kills=30', '--stops=10') if LONG else ('--kills=1', '--stops=1', '--procedures=plain')
    result = subprocess.run([sys.executable, 'scripts/torture.py', *counts], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout.splitlines()[-1])['differing'] == []


# Damage.


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A run stopped at step 30 with checkpoints of steps 16, 24 and 30, and the outcome of an undisturbed one."""
    path = tmp_path_factory.mktemp('stopped')
    loop.run(small_config(), path / 'undisturbed')
    stop(small_config(), path / 'run', Stopping(30))
    assert Checkpoints(path / 'run').steps() == [30, 24, 16]
    return path / 'run', outcome(path / 'undisturbed')


def copied(run: Path, to: Path) -> Path:
    subprocess.run(['cp', '-a', run, to], check=True)
    return to


def test_run_with_a_damaged_checkpoint_falls_back_and_ends_the_same(stopped, tmp_path, quiet):
    run = copied(stopped[0], tmp_path / 'run')
    newest = Checkpoints(run).directory / '30'
    victim = max((p for p in newest.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    loop.run(small_config(), run, quiet)
    assert f'{victim} is not what was written: going back to the checkpoint of step 24' in quiet.lines
    assert outcome(run) == stopped[1]


def test_every_file_of_every_checkpoint_damaged_stops_naming_it(stopped, tmp_path):
    run = copied(stopped[0], tmp_path / 'run')
    victims = {step: Checkpoints(run).directory / str(step) / 'SHA256SUMS' for step in Checkpoints(run).steps()}
    for victim in victims.values():
        victim.unlink()
    with pytest.raises(errors.UserError, match=f'no intact checkpoint in .*{victims[30]} is missing'):
        loop.run(small_config(), run)
    with pytest.raises(errors.UserError, match=f'{victims[30]} is missing; to have it made again, delete'):
        run_directory.load(run)
    assert len(Checkpoints(run).steps()) == 3  # nothing was deleted


def test_what_is_used_elsewhere_is_the_newest_checkpoint_or_an_error(stopped, tmp_path, quiet):
    """Exports and teachers must be what the summary speaks of: no older checkpoint, no other weights."""
    run = copied(stopped[0], tmp_path / 'run')
    loop.run(small_config(), run, quiet)
    newest = Checkpoints(run).directory / '40'
    metadata = newest / 'meta' / 'metadata'
    whole = metadata.read_bytes()
    metadata.write_bytes(whole + b' ')
    with pytest.raises(errors.UserError, match=f'{metadata} is not what was written; to have it made again, delete'):
        run_directory.load(run)
    metadata.write_bytes(whole)
    run_directory.load(run)
    summary = summary_lib.read(run)
    dataclasses.replace(summary, student_digest='0' * 64).write(run)
    with pytest.raises(errors.UserError, match='weights of step 40 .* are not those that its summary.json records'):
        run_directory.load(run)
    (run / summary_lib.SUMMARY).unlink()
    metadata.unlink()
    subprocess.run(['rm', '-r', newest], check=True)  # as the message says
    loop.run(small_config(), run, quiet)
    assert outcome(run) == stopped[1]


def test_what_is_not_a_checkpoint_is_left_alone(stopped, tmp_path, quiet):
    run = copied(stopped[0], tmp_path / 'run')
    notes, copy = Checkpoints(run).directory / 'notes.txt', Checkpoints(run).directory / '24.bak'
    notes.write_text('mine')
    copied(Checkpoints(run).directory / '24', copy)
    for stops_at in (33, 36):
        stop(small_config(), run, Stopping(stops_at))
    loop.run(small_config(), run, quiet)
    assert notes.read_text() == 'mine' and list(copy.iterdir())
    assert outcome(run) == stopped[1]


def damages(data: bytes):
    """Every kind of damage to a file's content; None: deleted."""
    yield None
    if data:
        yield b''
        yield data[: len(data) // 2]
        yield data[:-1]
        for position in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
            yield data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]
    yield data + b'0'


def test_every_damage_to_every_file_is_seen(stopped, tmp_path):
    run = copied(stopped[0], tmp_path / 'run')
    checkpoints, injected = Checkpoints(run), 0
    said = []
    checkpoints.say = said.append
    for path in sorted(p for p in (checkpoints.directory / '30').rglob('*') if p.is_file()):
        data = path.read_bytes()
        for damaged in damages(data):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            assert checkpoints.newest_intact() == 24, (path, damaged and len(damaged))
            assert (
                'going back to the checkpoint of step 24' in said[-1] and str(checkpoints.directory / '30') in said[-1]
            )
            path.write_bytes(data)
            injected += 1
    assert checkpoints.newest_intact() == 30
    assert injected > 200


@pytest.mark.parametrize('hostile', ['name', 'absolute', 'link', 'device', 'line', 'bytes', 'step'])
def test_hostile_checkpoints(stopped, tmp_path, hostile):
    """What a seal or a link names outside of the checkpoint is never opened."""
    run = copied(stopped[0], tmp_path / 'run')
    newest = Checkpoints(run).directory / '30'
    seal, outside = newest / 'SHA256SUMS', tmp_path / 'outside'
    outside.write_text('secret')
    os.chmod(outside, 0)
    if hostile in ('name', 'absolute'):
        name = '../../../outside' if hostile == 'name' else str(outside)
        seal.write_text(seal.read_text() + f'{"0" * 64}  {name}\n')
    elif hostile in ('link', 'device'):
        (newest / 'link').symlink_to(outside if hostile == 'link' else '/dev/zero')
        seal.write_text(seal.read_text() + f'{"0" * 64}  link\n')
    elif hostile == 'line':
        seal.write_text('no digest here\n')
    elif hostile == 'bytes':
        seal.write_bytes(b'\xff\xfe' * 100)
    else:
        newest.rename(newest.with_name('31'))
    assert Checkpoints(run).newest_intact() == 24


@pytest.mark.parametrize(
    'changed',
    [
        *({name: value} for name, value in (('history', None), ('history', {}), ('provenance', []), ('teacher', 'x'))),
        *(
            {'history': {name: value}}
            for name, value in (('lines', [3]), ('gradient_samples', ['x']), ('bad', 1), ('last', []))
        ),
        *({'history': {name: value}} for name, value in (('lines', ['\ud800']), ('gradient_samples', [{'a': 'x'}]))),
        {'history': {'seconds': float('inf')}},
        {'provenance': {'devices': 1}},
    ],
    ids=str,
)
def test_sealed_but_hostile_history_is_refused(stopped, tmp_path, changed):
    """A checkpoint whose seal fits, with something else where the run's past is kept."""
    run = copied(stopped[0], tmp_path / 'run')
    newest = Checkpoints(run).directory / '30'
    meta = json.loads((newest / META).read_text())
    if changed.get('history'):
        changed = {'history': meta['history'] | changed['history']}
    files.write_json(newest / META, meta | changed)
    seal(newest)
    with pytest.raises(errors.UserError, match='history|not written by a training run'):
        loop.run(small_config(), run)


@pytest.mark.parametrize('content', ['', '[]', '{', '[' * 200_000, '{"data": 3}', '\x00'])
def test_damaged_config_and_summary_are_named(stopped, tmp_path, content):
    for name in (run_directory.CONFIG, summary_lib.SUMMARY):
        run = copied(stopped[0], tmp_path / name)
        (run / name).write_text(content)
        with pytest.raises(errors.UserError, match=f'{run}'):
            loop.run(small_config(), run)


# Full disks and missing permission.


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 3 MB."""
    path = tmp_path / 'disk'
    path.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', path], capture_output=True)
    if mounted.returncode:
        pytest.skip('needs the right to mount a file system')
    yield path
    subprocess.run(['umount', path], check=True)


def test_disk_full_in_a_checkpoint(stopped, small_disk, tmp_path, quiet):
    expected = stopped[1]
    one = sum(path.stat().st_blocks * 512 for path in (stopped[0] / 'checkpoints' / '24').rglob('*'))
    free = shutil.disk_usage(small_disk).free
    (small_disk / 'ballast').write_bytes(bytes(free - 3 * one))  # how large one is depends on the machine's cores
    with pytest.raises(errors.UserError, match=r'cannot write the checkpoint of step \d+ .*No space left on device'):
        loop.run(small_config(checkpoint__keep=9), small_disk / 'run', quiet)
    time.sleep(0.5)  # nothing may come back
    names = [p.name for p in (small_disk / 'run' / 'checkpoints').iterdir()]
    assert all(name.isdigit() for name in names)
    assert Checkpoints(small_disk / 'run').newest_intact() == max(map(int, names))
    (small_disk / 'ballast').unlink()
    loop.run(small_config(checkpoint__keep=1), copied(small_disk / 'run', tmp_path / 'run'), quiet)
    assert outcome(tmp_path / 'run') == expected


def test_disk_filled_by_another_while_a_checkpoint_is_written(small_disk, command):
    run, ballast, filled_in = small_disk / 'run', small_disk / 'ballast', []

    def fill():
        while not list((run / 'checkpoints').glob('*.partial*')):
            time.sleep(1e-4)
        with ballast.open('wb', buffering=0) as file:
            for block in (2**16, 1):
                with contextlib.suppress(OSError):
                    while file.write(b'0' * block):
                        pass
        filled_in.extend((run / 'checkpoints').glob('*.partial*'))

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    process = command(run, 'epochs=900', 'checkpoint.every_steps=50')
    said = process.communicate(timeout=BOUND)[1]
    assert filled_in, 'the first checkpoint was there before the disk was full'
    assert process.returncode == 2 and 'Traceback' not in said, said
    line = [line for line in said.splitlines() if line]
    assert len(line) == 1 and re.search(
        r'error: cannot write the checkpoint .*No space left on device; there is', line[0]
    )
    assert not list((run / 'checkpoints').iterdir())
    ballast.unlink()
    process = command(run, 'epochs=900', 'checkpoint.every_steps=50')
    wait_for(lambda: checkpointed(run), process)


def test_disk_full_for_tensorboard(small_disk):
    """It is given up, said once, and the run goes on."""
    said = []
    tracker = trackers.Trackers(small_config(log__tensorboard=1, epochs=9), small_disk, 0, said.append)
    tracker.epoch({'epoch': 1, 'step': 1, 'loss': 1.0}, {'params': {}})
    with (small_disk / 'ballast').open('wb', buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b'0' * 512):
            pass
    for epoch in range(2, 9):
        tracker.epoch({'epoch': epoch, 'step': epoch, **{f'term{i}': 1.0 for i in range(300)}}, {'params': {}})
    tracker.finish({'steps': 9, 'last_top1': 1.0, 'best_top1': 1.0})
    tracker.close()
    assert said == ['TensorBoard cannot be written (No space left on device): the run goes on without it']


def test_export_of_an_unfinished_run_says_so_and_a_full_disk_leaves_nothing(stopped, small_disk, tmp_path):
    said, options = [], export.Options(('stablehlo', 'safetensors'), verify='random')
    export.export(stopped[0], tmp_path / 'export', options, say=said.append)
    assert 'not finished' in said[0] and 'not finished' in (tmp_path / 'export' / 'README.md').read_text()
    assert json.loads((tmp_path / 'export' / 'export.json').read_text())['finished'] is False
    with (small_disk / 'ballast').open('wb', buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b'0' * 512):
            pass
    with pytest.raises(errors.UserError, match='No space left on device'):
        export.export(stopped[0], small_disk / 'export', options, say=said.append)
    assert [path.name for path in small_disk.iterdir()] == ['ballast']


def test_disk_full_in_small_files(small_disk):
    """At every number of bytes left, a file is the old, the new, or an error; never a part."""
    path, free = small_disk / 'metrics.jsonl', os.statvfs(small_disk).f_bsize
    files.append_line(path, 'first')
    ballast = small_disk / 'ballast'
    failures = 0
    for pages in range(8):
        available = os.statvfs(small_disk).f_bavail * free
        ballast.write_bytes(b'0' * max(available - pages * free, 0))
        for write, value in ((files.append_line, 'x' * 9000), (files.write_atomically, 'y' * 9000)):
            before = path.read_text()
            try:
                write(path, value)
                assert path.read_text() in (f'{before}{value}\n', value)
            except errors.UserError as error:
                failures += 1
                assert str(error) == f'cannot write {path}: No space left on device'
                assert path.read_text() == before
            assert sorted(p.name for p in small_disk.iterdir()) == ['ballast', 'metrics.jsonl']
        ballast.unlink()
        path.write_text('first\n')
    assert failures > 2


@pytest.fixture
def unprivileged():
    """A directory, and the test's process as a user whom permissions stop."""
    with tempfile.TemporaryDirectory() as directory:
        was = os.geteuid()
        os.chown(directory, was or 65534, -1)
        os.seteuid(was or 65534)
        try:
            yield Path(directory)
        finally:
            os.seteuid(was)


def test_no_permission(unprivileged):
    tree = {'student': {'w': np.arange(3.0)}}
    checkpoints = Checkpoints(unprivileged, keep=2)
    checkpoints.save(1, tree, {})
    checkpoints.wait()
    (unprivileged / 'file').write_text('old')
    os.chmod(checkpoints.directory, 0o555)
    os.chmod(unprivileged, 0o555)
    os.chmod(unprivileged / 'file', 0o444)
    for forbidden, message in (
        (
            lambda: checkpoints.save(2, tree, {}) or checkpoints.wait(),
            'cannot write the checkpoint of step 2 ',
        ),
        (lambda: files.write_atomically(unprivileged / 'file', 'new'), f'cannot write {unprivileged}/file: '),
        (lambda: files.append_line(unprivileged / 'file', 'new'), f'cannot write {unprivileged}/file: '),
        (lambda: files.locked(unprivileged / 'other').__enter__(), f'cannot use {unprivileged}/other as a workdir: '),
        (lambda: files.locked(unprivileged).__enter__(), f'cannot use {unprivileged} as a workdir: '),
    ):
        with pytest.raises(errors.UserError, match=f'{message}.*Permission denied'):
            forbidden()
    assert (unprivileged / 'file').read_text() == 'old'
    assert checkpoints.newest_intact() == 1
    checkpoints.close()
    os.chmod(unprivileged, 0o755)
    os.chmod(checkpoints.directory, 0o755)


def test_read_only_file_system(stopped, small_disk):
    run = copied(stopped[0], small_disk / 'run')
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    with pytest.raises(errors.UserError, match=r'cannot use .* as a workdir: Read-only file system'):
        loop.run(small_config(), run)


# One run per directory.


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, '-c',
         'import sys, time; from pathlib import Path; from jointrd_jax.system import files\n'
         f'with files.locked(Path({str(tmp_path)!r})): print("held", flush=True); time.sleep(1000)'],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(errors.UserError, match=f'in use by process {holder.pid} on host {os.uname().nodename};'):
        with files.locked(tmp_path):
            pass
    holder.kill()
    holder.communicate()
    assert f'process {holder.pid} ' in (tmp_path / '.lock').read_text()  # it could not tidy up
    with files.locked(tmp_path):
        assert f'process {os.getpid()} ' in (tmp_path / '.lock').read_text()


def test_of_many_that_start_together_one_runs(tmp_path):
    inside, most, refused = [], [], []

    def enter():
        try:
            with files.locked(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.2)
                inside.pop()
        except errors.UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) + len(refused) == 8
    assert all(f'process {os.getpid()} on host' in message for message in refused)


# Long runs.


@pytest.mark.parametrize('steps, checkpoint_every', [(2000, 20), (10_000, 1000)] if LONG else [(400, 20)], ids=str)
def test_memory_files_and_threads_stay_flat(steps, checkpoint_every):
    """The quick form of scripts/soak.py."""
    counts = f'--steps={steps}', f'--checkpoint_every={checkpoint_every}'
    result = subprocess.run([sys.executable, 'scripts/soak.py', *counts], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# Hostile files.


def test_readers_survive_any_bytes(tmp_path):
    """The quick form of scripts/fuzz_readers.py."""
    inputs = '100000' if LONG else '500'
    result = subprocess.run(
        [sys.executable, 'scripts/fuzz_readers.py', '--inputs', inputs], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
