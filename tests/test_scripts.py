"""The scripts of the paper's experiments, with their positional arguments, on real CIFAR images and shrunk networks."""

import gzip
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from jointrd_jax import compare
from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.system import files, signals
from tests.support import real_data
from tests.support.configs import QUICK_FLAGS, ROOT

SHRINK = [
    '--config.epochs=1', '--config.model.stage_sizes=1,1', '--config.model.width=4', '--config.batch_size=4',
    '--config.eval_batch_size=4', '--config.mix.fraction=1',
]  # fmt: skip


def script(name, *arguments, data, out):
    """Run scripts/NAME.sh from another directory, as a user may."""
    settings = {'DATA_DIR': str(data), 'RUNS': str(out), 'XLA_FLAGS': QUICK_FLAGS, 'PYTHONPATH': str(ROOT)}
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    done = subprocess.run(
        [ROOT / 'scripts' / f'{name}.sh', *arguments, *SHRINK],
        cwd=out, env=os.environ | settings | {'PATH': path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_cifar_teacher_then_student(tmp_path):
    real_data.cifar10(tmp_path)
    script('cifar_resnet', '34', 'cifar10', '3', data=tmp_path, out=tmp_path)
    script('cifar_jointrd', '34', '0.2', 'jointrd', '3', 'cifar10', data=tmp_path, out=tmp_path)
    teacher, student = (summary_lib.read(tmp_path / 'cifar10' / name) for name in ('resnet34-3', 'jointrd34-eta0.2-3'))
    assert teacher.procedure == 'resnet' and student.teacher.endswith('resnet34-3') and student.seed == 3


@pytest.fixture
def python_process(tmp_path):
    """Starts a script in an empty directory."""

    def start(name, *arguments):
        environment = os.environ | {'XLA_FLAGS': QUICK_FLAGS, 'PYTHONPATH': str(ROOT)}
        command = [sys.executable, ROOT / 'scripts' / name, *map(str, arguments)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    return start


@pytest.fixture
def python(python_process):
    """Runs a script in an empty directory."""

    def run(name, *arguments):
        process = python_process(name, *arguments)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


def idx(path: Path, array: np.ndarray) -> None:
    """Write an array as Fashion-MNIST's files are: a header of big-endian numbers, then bytes, all compressed."""
    header = np.array([0x800 + array.ndim, *array.shape], '>i4').tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_the_datasets_of_the_study(python, tmp_path):
    assert python('image_folders.py', 'mnist5k', 'mnist5k').returncode == 0
    for split, count in (('train', 400), ('val', 100)):
        classes = sorted((tmp_path / 'mnist5k' / split).iterdir())
        assert [folder.name for folder in classes] == list('0123456789')
        assert all(len(list(folder.glob('*.png'))) == count for folder in classes)
    assert 'not an empty directory' in python('image_folders.py', 'mnist5k', 'mnist5k').stderr

    source = tmp_path / 'source'
    fashion = ('image_folders.py', 'fashion', 'fashion', '--source', source)
    assert 'no such file; apt install dataset-fashion-mnist' in python(*fashion).stderr
    source.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (1000, 28, 28), np.uint8)
    labels = (np.arange(1000) % 2).astype(np.uint8)
    for name, length in (('train', 1000), ('t10k', 6)):
        idx(source / f'{name}-images-idx3-ubyte.gz', images[:length])
        idx(source / f'{name}-labels-idx1-ubyte.gz', labels[:length])
    assert python(*fashion).returncode == 0
    written = [cv2.imread(str(path), 0) for path in sorted((tmp_path / 'fashion' / 'val' / '1').iterdir())]
    assert np.array_equal(written, images[[1, 3, 5]])
    assert len(list((tmp_path / 'fashion' / 'train' / '0').iterdir())) == 400
    assert python('image_folders.py', 'fashion-choice', 'choice', '--source', source).returncode == 0
    first, others = ([cv2.imread(str(path), 0) for path in sorted((tmp_path / 'choice' / split / '1').iterdir())]
                     for split in ('train', 'val'))  # fmt: skip
    assert np.array_equal(first, images[1::2][:400]) and np.array_equal(others, images[1::2][400:])
    whole = (source / 't10k-labels-idx1-ubyte.gz').read_bytes()
    (source / 't10k-labels-idx1-ubyte.gz').write_bytes(whole[:-9])
    assert 'the file is not whole' in python('image_folders.py', 'fashion', 'again', '--source', source).stderr
    assert not (tmp_path / 'again').exists()


def rows_of(table: str) -> dict[str, list[str]]:
    """The other columns of each row of a Markdown table, by its first."""
    lines = [line[2:].removesuffix(' |').split(' | ') for line in table.splitlines() if line[2:3].isalpha()]
    return {name: columns for name, *columns in lines if columns}


def test_the_study_of_the_docs(python, tmp_path, capsys):
    arguments = 'runs --datasets digits --depths 34 --seeds 0 --folds 0 --roads'.split()
    tiny = ['--set', 'epochs=1', 'eval_every=1', 'batch_size=256', 'model.stage_sizes=1,1', 'model.width=4']
    done = python('study.py', *arguments, 'none', *tiny)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / 'runs' / 'digits' / '34' / 'table.md').read_text()
    assert table in done.stdout and '500 images' in table
    assert list(rows_of(table)) == ['resnet', 'plain', 'jointrd']
    compared = json.loads((tmp_path / 'runs/digits/34/compare.json').read_text())
    for name, (top1, *_, to_resnet, _) in rows_of(table).items():
        assert top1 == compare.spread(compared[name], 'last_top1')
        assert to_resnet == compare.shown(compared[name]['difference'])
    assert python('study.py', *arguments, 'tailored', *tiny).returncode == 0  # a part of the study after another
    table = (tmp_path / 'runs' / 'digits' / '34' / 'table.md').read_text()
    assert list(rows_of(table)) == ['resnet', 'plain', 'plain+tailored', 'jointrd', 'jointrd+tailored']
    assert table in python('study.py', 'runs', '--tables').stdout and 'finished' not in table
    assert python('study.py', 'runs', '--depths', '35', '--tables').returncode == 2
    assert 'argument --seeds' in python('study.py', 'runs', '--seeds', '0,one').stderr

    joint, plain = 'runs/digits/34/jointrd', 'runs/digits/34/plain'
    lines = python('paired.py', joint, plain).stdout.splitlines()
    rows = rows_of(table)
    assert [line.split(': ')[0] for line in lines] == [joint, plain, 'difference']
    assert f'{rows["jointrd"][0]} %' in lines[0] and f'{rows["plain"][0]} %' in lines[1]
    assert lines[2] == f'difference: {rows["jointrd"][3]}'
    shutil.copytree(tmp_path / plain, tmp_path / 'others')
    (written,) = (tmp_path / 'others').rglob(run_directory.SUMMARY)
    summary = files.read_json(written)
    summary['eval_images'][0] += ' of another split'
    files.write_json(written, summary)
    script = runpy.run_path(str(ROOT / 'scripts' / 'paired.py'))
    script['main'](tmp_path / 'others', tmp_path / joint)
    assert 'no two runs have the same seed, fold and images' in capsys.readouterr().out
    for part in ('seed0', 'fold1of2/seed0'):
        shutil.copytree(tmp_path / plain / 'seed0', tmp_path / 'both' / part)
    written = tmp_path / 'both' / 'fold1of2' / 'seed0' / run_directory.CONFIG
    config = files.read_json(written)
    config['dataset.fold'] = '1/2'
    files.write_json(written, config)
    script['main'](tmp_path / 'both', tmp_path / plain)
    shipped, folds = capsys.readouterr().out.split('2 folds:')
    assert f'both: {rows["plain"][0]} %' in shipped and 'difference: +0.00 [+0.00, +0.00]' in shipped
    assert f'both: {rows["plain"][0]} %' in folds and f'{plain}: no finished run' in folds
    with pytest.raises(UserError, match='two runs of seed 0'):
        script['main'](tmp_path / 'runs', tmp_path / plain)
    with pytest.raises(UserError, match='no finished run lies below it'):
        script['main'](tmp_path / joint, tmp_path / 'nowhere')


def put(run: Path, right: str, ends: str = run_directory.SUMMARY) -> None:
    """A run that has begun, and what it leaves where it ends with a summary, a loss that is not finite, or not at all.

    Args:
      run: its directory.
      right: 1 for each image that its last evaluation got right, 0 for the others.
      ends: the file that says how.
    """
    run.mkdir(parents=True)
    files.write_json(run / run_directory.CONFIG, {})
    run_directory.write_correct(run, np.array(list(right), int))
    if ends == run_directory.SUMMARY:
        top1, seed = 100 * right.count('1') / len(right), int(run.name.removeprefix('seed'))
        found = summary_lib.Summary(
            procedure='plain', wall_seconds=1, seed=seed, last_top1=top1, eval_images=['digits', len(right)]
        )
        found.write(run)
    elif ends:
        files.write_json(run / ends, {'step': 1, 'term': 'loss'})


def test_the_tables_of_the_study_are_of_the_runs_that_are_there(python, tmp_path):
    """Whatever calls they are of: other roads, seeds, folds, variants and depths, finished or not."""
    at = tmp_path / 'runs' / 'digits' / '258'
    for seed in (0, 1):
        put(at / f'resnet/seed{seed}', '1111')
    put(at / 'resnet/seed2', '1000', ends='')
    put(at / 'plain/seed0', '1100')
    put(at / 'jointrd/seed0', '1110')
    put(at / 'jointrd/seed0/teacher', '1111', ends='')
    put(at / 'jointrd/seed1', '0000', ends=run_directory.NOT_FINITE)
    put(at / 'plain+dirac/seed0', '0000', ends=run_directory.NOT_FINITE)
    for fold, (resnet, plain) in enumerate([('11', '10'), ('11', '11'), ('1', '1')], 1):
        put(at / f'resnet/fold{fold}of3/seed0', resnet)
        put(at / f'plain/fold{fold}of3/seed0', plain)
    put(at / 'resnet/fold1of3/seed1', '11')
    put(at / 'plain/fold1of3/seed1', '00')
    at = tmp_path / 'runs' / 'fashion' / '101'
    put(at / 'resnet/seed0', '1111')
    for variant, resnet, plain in (('e1', '1100', '1000'), ('e3', '1110', '1111')):
        put(at / f'resnet/{variant}/seed0', resnet)
        put(at / f'plain/{variant}/seed0', plain)
        put(at / f'jointrd/{variant}/seed0', '1111')
    put(at / 'plain/alone/seed0', '1110')

    done = python('study.py', 'runs', '--tables')
    assert done.returncode == 0, done.stderr
    shipped, folds, fashion = done.stdout.split('top-1, last epoch')[1:]

    rows = rows_of(shipped)
    assert '4 images' in shipped and 'fold' not in shipped
    assert rows['resnet'][:2] == ['100.00 ± 0.00 (1 of 3 not finished)', '0: 100.00, 1: 100.00']
    assert rows['plain'][:2] == ['50.00', '0: 50.00'] and rows['plain'][2].startswith('-50.00 [')
    assert rows['jointrd'][:2] == ['75.00 (1 of 2 not finite)', '0: 75.00']
    assert rows['jointrd'][2].startswith('-25.00 [') and rows['jointrd'][3].startswith('+25.00 [')
    assert rows['plain+dirac'] == ['- (1 of 1 not finite)', '', '-', '-']
    assert len(rows) == 4

    rows = rows_of(folds)
    assert '5 images, 3 of 3 folds' in folds
    assert rows['resnet'][:2] == ['100.00 (2 of 6 not finished)', '0: 100.00']
    assert rows['plain'][:2] == ['80.00 (2 of 6 not finished)', '0: 80.00'] and rows['plain'][2].startswith('-20.00 [')

    rows = rows_of(fashion)
    differences = {name: [column.split(' [')[0] for column in columns[2:]] for name, columns in rows.items()}
    assert differences == {
        'resnet': ['-', '-'], 'resnet/e1': ['-', '-'], 'resnet/e3': ['-', '-'],
        'plain/alone': ['-25.00', '-'], 'plain/e1': ['-25.00', '-'], 'plain/e3': ['+25.00', '-'],
        'jointrd/e1': ['+50.00', '+75.00'], 'jointrd/e3': ['+25.00', '+0.00'],
    }  # fmt: skip


def test_a_stopped_study_keeps_a_checkpoint_and_continues(python_process, tmp_path):
    arguments = 'runs --datasets digits --depths 34 --seeds 0 --roads none --folds 0 --set'.split()
    arguments += ['batch_size=256', 'model.stage_sizes=1,1', 'model.width=4', 'epochs=2000']
    resnet = tmp_path / 'runs' / 'digits' / '34' / 'resnet' / 'seed0'
    for begun in (0, 1):
        process = python_process('study.py', *arguments)
        steps = Checkpoints(resnet).steps()
        assert len(steps) >= begun
        lines = len(run_directory.read_metrics(resnet / run_directory.METRICS))
        while len(run_directory.read_metrics(resnet / run_directory.METRICS)) <= lines:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        assert process.returncode == signals.STOPPED_STATUS, error
        assert 'the same command continues' in error and 'Traceback' not in error
        assert max(Checkpoints(resnet).steps()) > max(steps, default=0)


def test_images_and_weight_files_are_answered_as_the_docs_say(python):
    done = python('cases.py', 'image', 'weight file')
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith('| ')]
    documented = (ROOT / 'docs' / 'cases.md').read_text().splitlines()
    assert len(rows) > 80
    assert [row for row in rows if row not in documented] == []
