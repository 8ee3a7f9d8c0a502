"""Several processes (jax.distributed over loopback) and several devices against one of each."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.system import distributed
from jointrd_jax.train import loop
from tests.support import real_data
from tests.support.configs import QUICK_FLAGS, ROOT

TIMEOUT = 900  # seconds: a hang ends, a slow machine does not fail
SHRINK = [
    '--config.procedure=plain', '--config.epochs=2', '--config.batch_norm=global',
    '--config.optimizer.warmup_fraction=0', '--config.optimizer.learning_rate=0.02', '--config.model.stage_sizes=(1,1)',
    '--config.model.width=4',
    '--config.batch_size=8', '--config.eval_batch_size=8', '--config.dataset.name=folder', '--config.dataset.flip=True',
    '--config.dataset.image_size=16', '--config.dataset.resize=18', '--config.dataset.workers=0',
    '--config.checkpoint.every_steps=3', '--config.checkpoint.keep=9', '--config.dataset.on_bad_image=skip',
]  # fmt: skip


def start(workdir, data_dir, *args, devices=1) -> subprocess.Popen:
    flags = f'{QUICK_FLAGS} --xla_force_host_platform_device_count={devices}'
    environment = {**os.environ, 'XLA_FLAGS': flags}
    command = [sys.executable, '-m', 'jointrd_jax.main', '--config', 'configs/digits.py', '--workdir', str(workdir)]
    command += [f'--config.dataset.data_dir={data_dir}', *SHRINK, *args]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def start_two(workdir, data_dir, *args, second=()) -> list[subprocess.Popen]:
    """Two processes with two devices each."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    joined = [f'--coordinator=localhost:{port}', '--num_processes=2']
    return [
        start(workdir, data_dir, *args, *joined, f'--process_id={number}', *(second if number else ()), devices=2)
        for number in range(2)
    ]


def finish(*processes) -> list[tuple[int, str, str]]:
    """(status, output, errors) of each."""
    try:
        ended = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, *texts) for process, texts in zip(processes, ended)]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / run_directory.METRICS).read_text().splitlines()]


def assert_same_run(a, b):
    """The same losses, epoch by epoch, to float32 tolerance, and nearly the same weights."""
    assert len(metrics(a)) == len(metrics(b)) == 2
    for x, y in zip(metrics(a), metrics(b)):
        for name in ('loss', 'ce/student', 'gradient_norm'):
            np.testing.assert_allclose(x[name], y[name], rtol=2e-4)
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, atol=2e-4),
        run_directory.load(a).variables,
        run_directory.load(b).variables,
    )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The same run on one device, on eight, and on two hosts of two; the command line of the one."""
    root = tmp_path_factory.mktemp('hosts')
    photos = real_data.folder(root / 'photos', train=20, val=12)
    for bad in ('train/cat/000.jpg', 'val/cat/000.jpg', 'val/cat/010.jpg'):  # the last two in either host's share
        (photos / bad).write_bytes(b'')
    alone = [start(root / 'one', photos), start(root / 'eight', photos, devices=8)]
    for status, _, errors in finish(*alone, *start_two(root / 'two', photos)):
        assert status == 0, errors
    return root


def test_eight_devices_equal_one(finished):
    assert_same_run(finished / 'one', finished / 'eight')


def test_two_hosts_of_two_devices_equal_one_device(finished):
    assert_same_run(finished / 'one', finished / 'two')
    assert summary_lib.read(finished / 'two').devices.startswith('4 x')
    assert [summary_lib.read(finished / run).skipped_images for run in ('one', 'two')] == [3, 3]


def test_one_host_reads_what_two_have_saved(finished):
    loaded = run_directory.load(finished / 'two')
    assert run_directory.digest(loaded.variables) == summary_lib.read(finished / 'two').student_digest


def test_one_host_continues_what_two_began(finished, tmp_path, quiet):
    """Cut off in the middle of the second epoch: as if nothing had happened."""
    shutil.copytree(finished / 'two', tmp_path / 'run')
    (tmp_path / 'run' / summary_lib.SUMMARY).unlink()
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
    loop.run(run_directory.read_config(tmp_path / 'run'), tmp_path / 'run', quiet)
    assert 'continuing from step 3 of 4' in quiet.lines
    assert_same_run(finished / 'one', tmp_path / 'run')


def test_hosts_that_disagree_say_about_what(finished, tmp_path):
    processes = start_two(tmp_path / 'run', finished / 'photos', second=['--config.seed=3'])
    for status, _, errors in finish(*processes):
        assert status == 2
        assert 'the hosts disagree on the config (seed: 0 on process 0, 3 on process 1)' in errors
    assert not (tmp_path / 'run').exists()


def test_hosts_with_other_data_say_so(tmp_path):
    """They would take another number of steps, and wait for each other for ever."""
    here, there = (real_data.folder(tmp_path / name, train=number) for name, number in (('a', 12), ('b', 16)))
    processes = start_two(tmp_path / 'run', here, second=[f'--config.dataset.data_dir={there}'])
    for status, _, errors in finish(*processes):
        assert status == 2 and 'training images: 12 on process 0, 16 on process 1' in errors, errors


def test_an_error_of_one_host_ends_all(tmp_path):
    """Bad images on the second alone, in its first evaluation: it says so, and the first does not wait for it.

    In the first step, where Gloo still connects, the first would wait for half a minute.
    """
    good = real_data.folder(tmp_path / 'good', train=20, val=12)
    shutil.copytree(good, tmp_path / 'bad')
    for image in sorted((tmp_path / 'bad' / 'val').rglob('*.jpg'))[1:]:  # the first is looked at before training
        image.write_bytes(image.read_bytes()[:500])
    second = [f'--config.dataset.data_dir={tmp_path / "bad"}']
    (first, _, said_first), (second, _, said_second) = finish(
        *start_two(tmp_path / 'run', good, '--config.dataset.on_bad_image=fail', second=second)
    )
    assert (first, second) == (2, 2), said_first + said_second
    assert 'cut off: its data ends too early' in said_second
    assert 'error: another process of this run has ended (its log says why)' in said_first
    assert 'Traceback' not in said_first + said_second


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((None, 2, 0), 'need --coordinator=HOST:PORT'),
        (('localhost:1', None, 0), 'needs --num_processes and --process_id too'),
        (('localhost:1', 2, 2), '--process_id=2 is not between 0 and'),
    ],
)
def test_arguments_that_do_not_fit_together(arguments, message):
    with pytest.raises(UserError, match=message):
        distributed.start(*arguments)
