"""The command line, as a user starts it: real processes."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.configs import QUICK_FLAGS, ROOT

SHRINK = ['--config.epochs=1', '--config.model.stage_sizes=1,1', '--config.model.width=4']


def command(module, *args, env=None):
    environment = {**os.environ, 'XLA_FLAGS': QUICK_FLAGS, **(env or {})}
    return subprocess.run(
        [sys.executable, '-W', 'error::DeprecationWarning:jointrd_jax', '-m', f'jointrd_jax.{module}', *args],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_main_trains(tmp_path):
    optimised = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0', 'XLA_FLAGS': ''}  # as a user runs it, unlike all other tests
    done = command('main', '--config', 'configs/digits.py', '--workdir', str(tmp_path / 'run'), *SHRINK, env=optimised)
    assert done.returncode == 0, done.stderr
    assert 'training the teacher first' in done.stdout and 'finished' in done.stdout
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['shortcuts'] == 'none' and summary['epochs'] == 1


@pytest.mark.parametrize(
    'args, message',
    [
        (['--config.nosuch=1'], "no field 'nosuch'"),
        (['--config.model.widht=1'], "no field 'model.widht'; did you mean model.width"),
        (['--config.epochs=many'], 'epochs'),
        (['--config.procedure=magic'], "config.procedure='magic' is not accepted; it must be: resnet | plain"),
        (['--config.batch_size=0'], 'config.batch_size=0'),
        (['--config.mix.taps=1', '--config.mix.taps', '3'], '--config.mix.taps is given more than once'),
        (
            ['--config', 'configs/none.py'],
            'configs/none.py: no such file, and no recipe of that name; there are ',
        ),
        (['--config=digit'], '--config=digit: no such file, and no recipe of that name; did you mean digits?'),
        (['stray'], "unexpected argument 'stray'"),
        (['--nosuch'], 'nosuch'),
        (['--config.restore=/nowhere'], '/nowhere is not a run directory'),
    ],
)
def test_bad_input_is_one_line(args, message, tmp_path):
    done = command('main', '--config', 'configs/digits.py', '--workdir', str(tmp_path / 'run'), *args)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith('error:')]
    assert len(lines) == 1 and message in lines[0], done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'run').exists()


WITHOUT_JAX = """
import sys
from jointrd_jax import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    print(end.code, 'jax' in sys.modules)
"""


@pytest.mark.parametrize(
    'args, status',
    [
        (['--help'], 0),
        (['train', '--help'], 0),
        (['train', '--config=digits', '--workdir=none', '--config.epochs=0'], 2),
        (['train', '--config=digits', '--workdir=none', '--config.epoch=1'], 2),
        (['trian'], 2),
    ],
)
def test_help_and_what_is_wrong_need_no_jax(args, status, tmp_path):
    done = subprocess.run([sys.executable, '-c', WITHOUT_JAX, *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f'{status} False', done.stdout + done.stderr


def test_required_flags_are_named():
    done = command('main')
    assert done.returncode == 2 and done.stderr == 'error: --config is missing\n'


def test_compare(tmp_path, monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)  # pytest-xdist sets it
    args = [
        '--config',
        'configs/digits.py',
        '--workdir',
        str(tmp_path),
        '--seeds',
        '0,1',
        '--procedures',
        'plain,jointrd+dirac',
    ]
    done = command('compare', *args, *SHRINK)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'compare.json').read_text())
    assert result.keys() == {'plain', 'jointrd+dirac'}
    rows = [line.split('│')[1].strip() for line in done.stdout.splitlines() if line.startswith('│')]
    assert rows[-2:] == ['plain', 'jointrd+dirac']  # a line each, in a pipe too
    for name, cell in result.items():
        tops = [run['last_top1'] for run in cell['runs']]
        assert cell['last_top1_mean'] == pytest.approx(sum(tops) / 2)
        assert cell['last_top1_std'] == pytest.approx(abs(tops[0] - tops[1]) / 2**0.5)
        assert [run['seed'] for run in cell['runs']] == [0, 1]
        assert all((run['reparam'] == 'dirac') == name.endswith('+dirac') for run in cell['runs'])
    assert (tmp_path / 'compare.png').read_bytes().startswith(b'\x89PNG')
    teachers = [run['teacher'] for run in result['jointrd+dirac']['runs']]
    assert teachers == [str(tmp_path / 'resnet' / f'seed{seed}') for seed in (0, 1)]
    again = command('compare', *args, *SHRINK)
    assert again.stdout.count('is finished already') == 6
    assert json.loads((tmp_path / 'compare.json').read_text()) == result


def test_compare_goes_on_after_a_loss_that_is_not_finite(tmp_path):
    variants = 'diverges: optimizer.learning_rate=1e15 optimizer.warmup_fraction=0; fine:'
    args = ['--workdir', str(tmp_path), '--procedures', 'plain', '--variants', variants, '--report']
    done = command('compare', '--config', 'configs/digits.py', *args, *SHRINK)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'compare.json').read_text())
    diverged, fine = result['plain/diverges'], result['plain/fine']
    assert 'is not finite at step' in diverged['runs'][0]['not_finite'] and diverged['last_top1_mean'] is None
    assert fine['last_top1_mean'] == fine['runs'][0]['last_top1']
    assert 'not finite' in next(line for line in done.stdout.splitlines() if '│ plain/diverges' in line)
    report = (tmp_path / 'report.html').read_text()
    assert 'not finite at step' in report and 'not finished' not in report and (tmp_path / 'compare.png').exists()


def test_compare_refuses_what_is_no_procedure(tmp_path):
    args = ['--config', 'configs/digits.py', '--workdir', str(tmp_path / 'c'), '--procedures']
    for names, message in (
        ('plane', 'not one of resnet, plain'),
        ('resnet+dirac', 'which has no road'),
        ('plain,plain', 'each once'),
    ):
        done = command('compare', *args, names)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / 'c').exists()
