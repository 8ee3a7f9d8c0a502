"""The scripts of the paper's experiments, with their positional arguments, on real CIFAR images and shrunk networks."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from jointrd_jax.runs import summary as summary_lib
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
def python(tmp_path):
    """Runs a script in an empty directory."""

    def run(name, *arguments):
        environment = os.environ | {'XLA_FLAGS': QUICK_FLAGS, 'PYTHONPATH': str(ROOT)}
        command = [sys.executable, ROOT / 'scripts' / name, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

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


def test_the_study_of_the_docs(python, tmp_path):
    arguments = 'runs --datasets digits --depths 34 --seeds 0 --roads none,tailored --folds 0'.split()
    tiny = ['--set', 'epochs=1', 'eval_every=1', 'batch_size=256', 'model.stage_sizes=1,1', 'model.width=4']
    done = python('study.py', *arguments, *tiny)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / 'runs' / 'digits' / '34' / 'table.md').read_text()
    assert table in done.stdout
    names = [line.split(' | ')[0].strip('| ') for line in table.splitlines()[2:] if line.startswith('|')]
    assert names == ['resnet', 'plain', 'plain+tailored', 'jointrd', 'jointrd+tailored']
    assert table in python('study.py', *arguments, '--tables').stdout
    (tmp_path / 'runs/digits/34/compare.json').unlink()  # as where the comparison is not finished yet
    partial = python('study.py', *arguments, '--tables').stdout
    assert all(line in partial for line in table.splitlines() if line.startswith('|')) and 'not finished' in partial
    assert python('study.py', 'runs', '--depths', '35', '--tables').returncode == 2


def test_images_and_weight_files_are_answered_as_the_docs_say(python):
    done = python('cases.py', 'image', 'weight file')
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith('| ')]
    documented = (ROOT / 'docs' / 'cases.md').read_text().splitlines()
    assert len(rows) > 80
    assert [row for row in rows if row not in documented] == []
