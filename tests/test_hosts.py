"""Several processes (jax.distributed over loopback) and several devices against one of each."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from jointrd_jax import hosts, runs
from jointrd_jax.errors import UserError

sys.path.insert(0, str(ROOT / 'tests' / 'data'))
import real_data

SHRINK = [
    '--config.procedure=plain', '--config.epochs=2', '--config.batch_norm=global', '--config.optimizer.warmup_epochs=0',
    '--config.optimizer.learning_rate=0.02', '--config.model.stage_sizes=(1,1,1,1)', '--config.model.width=4',
    '--config.batch_size=8', '--config.eval_batch_size=8', '--config.dataset.name=folder', '--config.dataset.flip=True',
    '--config.dataset.image_size=32', '--config.dataset.resize=36', '--config.dataset.workers=0',
    '--config.checkpoint.every_steps=3', '--config.checkpoint.keep=9',
]  # fmt: skip


def start(workdir, data_dir, *args, devices=1) -> subprocess.Popen:
    flags = f'--xla_force_host_platform_device_count={devices}'
    command = [sys.executable, '-m', 'jointrd_jax.main', '--config', 'configs/digits.py', '--workdir', str(workdir)]
    return subprocess.Popen(
        [*command, f'--config.dataset.data_dir={data_dir}', *SHRINK, *args],
        cwd=ROOT, env={**os.environ, 'XLA_FLAGS': flags}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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
        ended = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, ended)]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / runs.METRICS).read_text().splitlines()]


def assert_same_run(a, b):
    """The same losses, epoch by epoch, to float32 tolerance, and nearly the same weights."""
    assert len(metrics(a)) == len(metrics(b)) == 2
    for x, y in zip(metrics(a), metrics(b)):
        for name in ('loss', 'ce/student', 'gradient_norm'):
            np.testing.assert_allclose(x[name], y[name], rtol=2e-4)
    import jax

    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, atol=2e-4), runs.load(a).variables, runs.load(b).variables
    )


@pytest.fixture(scope='module')
def run_of_two_hosts(tmp_path_factory):
    root = tmp_path_factory.mktemp('hosts')
    photos = real_data.folder(root / 'photos', train=20, val=12)
    alone = start(root / 'one', photos)
    for status, _, errors in finish(alone, *start_two(root / 'two', photos)):
        assert status == 0, errors
    return root


def test_two_hosts_of_two_devices_equal_one_device(run_of_two_hosts):
    assert_same_run(run_of_two_hosts / 'one', run_of_two_hosts / 'two')
    assert runs.read_summary(run_of_two_hosts / 'two')['devices'].startswith('4 x')


def test_one_host_reads_what_two_have_saved(run_of_two_hosts):
    loaded = runs.load(run_of_two_hosts / 'two')
    assert runs.digest(loaded.variables) == runs.read_summary(run_of_two_hosts / 'two')['student_digest']


def test_eight_devices_continue_what_two_hosts_began(run_of_two_hosts, tmp_path):
    """Cut off in the middle of the second epoch and continued on other devices: as if nothing had happened."""
    shutil.copytree(run_of_two_hosts / 'two', tmp_path / 'eight')
    (tmp_path / 'eight' / runs.SUMMARY).unlink()
    shutil.rmtree(tmp_path / 'eight' / 'checkpoints' / '4')
    ((status, output, errors),) = finish(start(tmp_path / 'eight', run_of_two_hosts / 'photos', devices=8))
    assert status == 0, errors
    assert 'continuing from step 3 of 4' in output
    assert_same_run(run_of_two_hosts / 'one', tmp_path / 'eight')


def test_eight_devices_equal_one(run_of_two_hosts, tmp_path):
    ((status, _, errors),) = finish(start(tmp_path / 'eight', run_of_two_hosts / 'photos', devices=8))
    assert status == 0, errors
    assert_same_run(run_of_two_hosts / 'one', tmp_path / 'eight')


def test_hosts_that_disagree_say_about_what(run_of_two_hosts, tmp_path):
    processes = start_two(tmp_path / 'run', run_of_two_hosts / 'photos', second=['--config.seed=3'])
    for status, _, errors in finish(*processes):
        assert status == 2
        assert 'the hosts disagree on the config (seed: 0 on process 0, 3 on process 1)' in errors
    assert not (tmp_path / 'run').exists()


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
        hosts.start(*arguments)
