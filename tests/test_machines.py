"""Environments and command lines that cannot work: one line, status 2, nothing made. Each is a real process."""

import os
import socket
import subprocess
import sys

import pytest

from jointrd_jax import cli
from jointrd_jax.data import streaming
from jointrd_jax.errors import UserError
from jointrd_jax.system import distributed, notices
from jointrd_jax.train import trackers
from tests.support import real_data


def jointrd(*arguments, **environment):
    command = [sys.executable, '-m', 'jointrd_jax', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def one_line(done, *parts):
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith('error: ')
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    'variable, value, part',
    [
        ('JAX_PLATFORMS', 'cuda', 'needs a plug-in that is not installed (jax_cuda13_plugin or jax_cuda12_plugin)'),
        ('JAX_PLATFORMS', 'cpu,gpu', 'needs a plug-in that is not installed'),
        ('JAX_PLATFORMS', 'CPU', 'is written cpu'),
        ('JAX_PLATFORMS', 'cdua', 'is no platform of JAX'),
        ('JAX_PLATFORM_NAME', 'gpu', 'JAX_PLATFORM_NAME=gpu'),
    ],
)
def test_platforms_that_are_not_there(variable, value, part, tmp_path):
    training = ('train', '--config', 'digits', '--workdir', tmp_path / 'run')
    for command in (training, ('convert', 'w.pth', '--out', tmp_path / 'out')) if value == 'cuda' else (training,):
        one_line(jointrd(*command, **{variable: value}), part, 'installed here: cpu')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'coordinator',
    ['localhost', 'localhost:abc', 'http://localhost:1234', ':1234', 'localhost:0', 'localhost:70000', '::1:99'],
)
def test_coordinators_that_are_no_address(coordinator, tmp_path):
    with pytest.raises(UserError, match=r'is not HOST:PORT, as in --coordinator=10\.0\.0\.1:1234'):
        distributed.start(coordinator, 1, 0)


def test_addresses_of_the_coordinator():
    assert distributed.address('node-0.cluster:1234') == ('node-0.cluster', 1234)
    assert distributed.address('[::1]:99') == ('::1', 99)


def test_a_coordinator_that_does_not_answer_ends_after_a_bounded_time(monkeypatch, capsys):
    monkeypatch.setattr(distributed, 'JOIN_SECONDS', 1)
    with socket.socket() as taken:  # bound and not listening: nobody else can take the port
        taken.bind(('127.0.0.1', 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf'process 0 is not at --coordinator=127\.0\.0\.1:{port} after 1 s'):
            distributed.start(f'127.0.0.1:{port}', 2, 1)
    assert 'waiting for process 0' in capsys.readouterr().err


@pytest.mark.parametrize(
    'argument, part',
    [
        ('--config.batch-size=8', 'did you mean --config.batch_size?'),
        ('--batch_size=8', 'did you mean --config.batch_size?'),
        ('--config.optimizer.learning-rate=1', 'did you mean --config.optimizer.learning_rate?'),
        ('--config.batch_size=many', "config.batch_size='many' is not accepted"),
        ('--config.batch_size=', "config.batch_size='' is not accepted"),
        ('--config.batchsize=8', 'did you mean batch_size'),
    ],
)
def test_spellings_of_fields(argument, part, tmp_path):
    one_line(jointrd('train', '--config', 'digits', '--workdir', tmp_path / 'run', argument), part)
    assert not list(tmp_path.iterdir())


def test_notices_are_plain_lines(capsys):
    with notices.as_plain_lines():
        notices.say_once('a line')
        notices.say_once('a line')
    assert capsys.readouterr().err == 'a line\n'


def test_workers_fit_into_shared_memory(tmp_path, monkeypatch, caplog):
    root = real_data.folder(tmp_path / 'images', train=8, val=4)
    config = real_data.config('folder', root, batch_size=4, eval_batch_size=4, image_size=64, resize=64, workers=8)
    from jointrd_jax import data

    each = 2 * (streaming.CHUNKS_AHEAD + 2) * 4 * 64 * 64 * 3
    monkeypatch.setattr(streaming, 'free_shared', lambda: each * 3)
    dataset = data.load(config)
    assert dataset.num_workers == 2
    assert '2 input workers instead of 8' in caplog.text
    dataset.close()
    monkeypatch.setattr(streaming, 'free_shared', lambda: each // 2)
    with pytest.raises(UserError, match=r'/dev/shm has room for 0 MiB.*--shm-size=8g.*dataset\.workers=0'):
        data.load(config)


def test_the_mode_of_wandb_is_checked_before_training(monkeypatch, tmp_path):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'off')
    with pytest.raises(UserError, match='WANDB_MODE=off is not one of online, offline, disabled'):
        trackers.check_wandb()


def test_the_id_of_a_run_is_random_and_kept(tmp_path, monkeypatch):
    monkeypatch.delenv('WANDB_RUN_ID', raising=False)
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
    first = trackers.run_id(tmp_path / 'a')
    assert trackers.run_id(tmp_path / 'a') == first != trackers.run_id(tmp_path / 'b')
    monkeypatch.setenv('WANDB_RUN_ID', 'mine')
    assert trackers.run_id(tmp_path / 'a') == 'mine'


def test_a_key_that_is_refused_is_one_line_before_training(tmp_path):
    pytest.importorskip('wandb')
    environment = dict(WANDB_MODE='online', WANDB_API_KEY='0' * 40, WANDB_BASE_URL='http://127.0.0.1:9')
    done = jointrd(
        'train', '--config', 'digits', '--workdir', tmp_path / 'run', '--config.log.tracker=wandb', **environment
    )
    assert done.returncode == 2
    assert 'error: config.log.tracker=wandb cannot log in' in done.stderr and 'WANDB_MODE=offline' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'run').exists()


@pytest.mark.filterwarnings('ignore:the load_module')  # which ml_collections reads recipes with
@pytest.mark.parametrize(
    'arguments',
    [
        'train --config digits --workdir hf://b/r',
        'train --config digits --workdir run --config.teacher.path=hf://b/t.pth',
        'train --config digits --workdir run --config.restore=http://b/t.pth',
        'train --config cifar10 --workdir run --config.dataset.data_dir=hf://b/d',
        'compare --config digits --workdir ftp://b/r',
        'evaluate hf://b/r',
        'evaluate run --data_dir hf://b/d',
        'predict hf://b/x.onnx picture.png',
        'predict run hf://b/pictures',
        'export --workdir hf://b/r --out out',
        'export --workdir run --out hf://b/o',
        'export --workdir run --out out --data_dir hf://b/d',
        'report run --out hf://b/r.html',
        'report hf://b/r',
        'prepare cifar10 --data_dir hf://b/d',
        'prepare cifar10 --convert_to hf://b/d',
        'convert hf://b/w.pth --out out',
        'convert w.pth --out hf://b/t.safetensors',
        'plan --config digits --topology v5e:2x2 --json hf://b/p.json',
        'plan --config digits --topology v5e:2x2 --json s3://b/p.json',
        'benchmark --out hf://b/r.json',
        'benchmark --trace gs://b/t',
        'targets run --out hf://b/t',
        'targets run --json gs://b/t.json',
        'targets s3://b/run',
        'savings --out s3://b/s',
    ],
)
def test_a_path_with_a_scheme_is_never_a_local_folder(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *rest = arguments.split()
    with pytest.raises(SystemExit) as ended:
        cli.run(name, rest)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and ('give a local path, gs' in line or 'must be a local path' in line)
    assert not list(tmp_path.iterdir())


def test_a_compiler_for_tpus_does_not_look_for_one_here():
    pytest.importorskip('libtpu')
    script = 'from jointrd_jax.system import runtime; runtime.configure(); import jax; print(jax.default_backend())'
    environment = {name: value for name, value in os.environ.items() if not name.startswith('JAX_PLATFORM')}
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ('cpu\n', '')
