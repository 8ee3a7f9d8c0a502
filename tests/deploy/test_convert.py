import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from jointrd_jax.config import default
from jointrd_jax.deploy import export
from jointrd_jax.deploy.convert import convert
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import run_directory, weights
from jointrd_jax.train import loop, setup
from jointrd_jax.train.job import Job
from jointrd_jax.train.progress import Reporter
from tests.support import real_data
from tests.support.networks import images_like, randomised, relative_difference
from tests.support.runs import digits_run


def equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def foreign_file(path, network, image_shape=(8, 8, 1)):
    """A state dict that says nothing of itself."""
    variables = randomised(network, image_shape)
    safetensors.numpy.save_file(weights.export_names(variables), path)
    return variables


def test_a_run_there_and_back(tmp_path):
    network, variables = digits_run(tmp_path / 'run', reparam='dirac')
    convert(tmp_path / 'run', tmp_path / 'w.safetensors')
    convert(tmp_path / 'w.safetensors', tmp_path / 'again')
    run, first = run_directory.load(tmp_path / 'again'), run_directory.load(tmp_path / 'run')
    assert run.network == network
    assert run.data == first.data
    assert run.config.dataset.name == 'digits'
    assert run.summary.student_digest == first.summary.student_digest
    equal(run.variables, variables)


def test_a_foreign_file_becomes_a_run(tmp_path):
    network = Network((2, 2, 2, 2), width=4, num_classes=5)
    variables = foreign_file(tmp_path / 'w.safetensors', network, (32, 32, 3))
    convert(tmp_path / 'w.safetensors', tmp_path / 'run', image_size=48)
    run = run_directory.load(tmp_path / 'run')
    assert (run.config.procedure, run.config.model.depth, run.config.model.stem) == ('resnet', 18, 'imagenet')
    assert run.data.image_shape == (48, 48, 3)
    assert run.data.mean == (0.485, 0.456, 0.406)
    assert run.data.classes == tuple('01234')
    equal(run.variables, variables)


def test_a_dataset_gives_names_and_normalisation(tmp_path):
    foreign_file(tmp_path / 'w.safetensors', Network((1, 1), width=4, num_classes=10, stem_kind='cifar'))
    convert(tmp_path / 'w.safetensors', tmp_path / 'run', dataset='digits')
    assert run_directory.load(tmp_path / 'run').data.image_shape == (8, 8, 1)
    foreign_file(tmp_path / 'v.safetensors', Network((1, 1), width=4, num_classes=7, stem_kind='cifar'))
    with pytest.raises(UserError, match=r'7 classes and 1 channels, but the dataset digits has 10 and 1'):
        convert(tmp_path / 'v.safetensors', tmp_path / 'other', dataset='digits')
    assert not (tmp_path / 'other').exists()


def test_a_streamed_dataset_serves_the_export(tmp_path):
    real_data.imagenet(tmp_path / 'data')
    network = Network((1, 1), width=4, num_classes=1000)
    foreign_file(tmp_path / 'w.safetensors', network, (32, 32, 3))
    where = dict(dataset='imagenet2012', data_dir=str(tmp_path / 'data'))
    convert(tmp_path / 'w.safetensors', tmp_path / 'run', image_size=32, **where)
    settings = json.loads((tmp_path / 'run' / 'config.json').read_text())
    (tmp_path / 'run' / 'config.json').write_text(json.dumps({**settings, 'dataset.workers': 0}))  # quicker here
    options = export.Options(('safetensors',), batch=4)
    record = export.export(tmp_path / 'run', tmp_path / 'out', options, say=lambda line: None)
    assert record['artifacts']['safetensors']['images'] == 6


def test_shortcuts_removed_the_run_computes_the_same(tmp_path):
    network, variables = digits_run(tmp_path / 'run', shortcuts='all')
    convert(tmp_path / 'run', tmp_path / 'removed', remove_shortcuts=True)
    run, images = run_directory.load(tmp_path / 'removed'), images_like((8, 8, 1))
    assert set(run.network.block_shortcuts()) == {'none'}
    assert run.config.procedure == 'plain'
    wanted = np.asarray(jax.jit(network.apply)(variables, images).logits)
    assert relative_difference(jax.jit(run.network.apply)(run.variables, images).logits, wanted) < 1e-4
    with pytest.raises(UserError, match='no shortcut to remove'):
        convert(tmp_path / 'removed', tmp_path / 'again', remove_shortcuts=True)
    assert not (tmp_path / 'again').exists()


@pytest.mark.parametrize('as_run', [False, True])
def test_imported_weights_teach(tmp_path, as_run):
    variables = foreign_file(tmp_path / 'w.safetensors', Network((1, 1), width=4, num_classes=10, stem_kind='cifar'))
    path = tmp_path / 'w.safetensors'
    if as_run:
        convert(path, path := tmp_path / 'teacher', dataset='digits')
    config = default()
    config.model.stage_sizes, config.model.width = (1, 1), 4
    config.batch_size, config.eval_batch_size, config.teacher.path = 256, 512, str(path)
    with pytest.raises(UserError, match=r'near chance \(10\.00 %\).*least_top1=0'):
        Job(config, tmp_path, setup.make(config, tmp_path / 'run'), Reporter('test'))
    config.teacher.least_top1 = 0.0
    teacher = Job(config, tmp_path, setup.make(config, tmp_path / 'run'), Reporter('test')).teacher
    assert teacher.origin == str(path)
    assert teacher.top1 < 40  # random weights: what matters is that they were run
    equal(teacher.variables, variables)


def test_a_teacher_file_that_does_not_fit_is_refused(tmp_path):
    foreign_file(tmp_path / 'w.safetensors', Network((1, 1), width=4, num_classes=7, stem_kind='cifar'))
    config = default()
    config.model.stage_sizes, config.model.width = (1, 1), 4
    config.batch_size, config.eval_batch_size, config.teacher.path = 32, 512, str(tmp_path / 'w.safetensors')
    with pytest.raises(UserError, match=r'fc\.weight is \[7, 8\], not \[10, 8\]'):
        loop.run(config, tmp_path / 'student')


def test_bad_paths_are_one_clear_line(tmp_path):
    digits_run(tmp_path / 'run')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').write_text('')
    for source, target, message in (
        ('run', 'full', 'full exists already'),
        ('run', 'full/file', 'file exists already'),
        ('run', 'w.pth', r'written as \.safetensors only'),
        ('nothing', 'new', 'no such run or weight file'),
        ('full', 'new', 'not a run directory'),
    ):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / source, tmp_path / target)
    assert {path.name for path in tmp_path.iterdir()} == {'run', 'full'}


def test_the_command(tmp_path):
    foreign_file(tmp_path / 'w.safetensors', Network((1, 1), width=4, num_classes=10, stem_kind='cifar'))
    command = [sys.executable, '-m', 'jointrd_jax.convert', str(tmp_path / 'w.safetensors'), '--remove_shortcuts']
    done = subprocess.run([*command, f'--out={tmp_path / "run"}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'shortcuts removed' in done.stdout
    done = subprocess.run([*command[:3], f'--out={tmp_path / "other"}'], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, 'error: IN is missing: IN comes before the options\n')
