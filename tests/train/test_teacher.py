"""Teachers and first weights: the last or best of a run, and files of other programs' making."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from jointrd_jax import data
from jointrd_jax.errors import UserError
from jointrd_jax.runs import from_config, run_directory, weights
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.runs.summary import Summary
from jointrd_jax.train import job, loop, setup, teacher as teacher_lib
from tests.support.configs import tiny_config
from tests.support.networks import randomised

torch = pytest.importorskip('torch')


def saved(path, run, change=lambda arrays: arrays):
    """The network of a run as a training script would save it."""
    arrays = {name: torch.tensor(array) for name, array in weights.export_names(run.variables).items()}
    held = {f'module.{name}': array for name, array in change(arrays).items()}
    torch.save({'state_dict': held, 'state_dict_ema': held, 'epoch': 2}, path)
    return str(path)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp('teacher') / 'resnet'
    loop.run(tiny_config(procedure='resnet', epochs=4), path)
    return run_directory.load(path)


@pytest.mark.parametrize('which, seed, recorded', [('last', 1, '70.00 %'), ('best', 2, '80.00 %')])
def test_which_weights_of_its_run_teach(which, seed, recorded, tmp_path, quiet, monkeypatch):
    """They are held to the accuracy that the run recorded for them."""
    config = tiny_config(procedure='logit_kd', teacher__path=str(tmp_path / 'teacher'), teacher__which=which)
    dataset = data.load(config)
    network = from_config.resnet(config, len(dataset.classes))
    last, best = (randomised(network, dataset.image_shape, number) for number in (1, 2))
    images = [dataset.name, dataset.eval_size]
    summary = Summary(procedure='resnet', wall_seconds=0.0, eval_images=images, last_top1=70.0, best_top1=80.0)
    run_directory.save(tmp_path / 'teacher', teacher_lib.recipe(config), last, dataset.description, summary)
    with contextlib.closing(Checkpoints(tmp_path / 'teacher', keep=1)) as checkpoints:
        checkpoints.save(1, {'student': last, 'best': best}, {'data': dataset.description.to_json()})
    plan = setup.make(config, tmp_path / 'run')
    assert plan.teacher.digest == run_directory.digest(randomised(network, dataset.image_shape, seed))
    monkeypatch.setattr(job, 'evaluate', lambda *_: SimpleNamespace(accuracies={'top1': 10.0}))
    with pytest.raises(UserError, match=f'its summary records {recorded}'):
        job.Job(config, tmp_path / 'run', plan, quiet)


def test_a_checkpoint_of_another_program_teaches_and_is_restored(teacher, tmp_path, quiet, caplog):
    path = saved(tmp_path / 'best.pth.tar', teacher)
    summary = loop.run(tiny_config(teacher__path=path, epochs=1), tmp_path / 'run', quiet)
    assert summary.teacher_top1 == teacher.summary.last_top1
    assert "best.pth.tar: 'state_dict' taken, not 'state_dict_ema'" in caplog.text
    config = tiny_config(procedure='resnet', restore=path, restore_head='new', epochs=1)
    config.optimizer.learning_rate = 1e-9
    loop.run(config, tmp_path / 'restored', quiet)
    before, after = (run.variables['params'] for run in (teacher, run_directory.load(tmp_path / 'restored')))
    np.testing.assert_allclose(after['stem']['conv']['kernel'], before['stem']['conv']['kernel'], atol=1e-6)
    assert abs(after['head']['kernel'] - before['head']['kernel']).max() > 1e-2


def test_classes_in_another_order_stop_the_run(teacher, tmp_path, quiet):
    def reversed_classes(arrays):
        return {name: array.flip(0) if name.startswith('fc.') else array for name, array in arrays.items()}

    path = saved(tmp_path / 'w.pth', teacher, reversed_classes)
    with pytest.raises(UserError, match=r'near chance \(10\.00 %\).*another order.*config\.teacher\.least_top1=0'):
        loop.run(tiny_config(teacher__path=path, epochs=1), tmp_path / 'run', quiet)
    assert not (tmp_path / 'run').exists()
    with pytest.raises(UserError, match=r'less than config\.teacher\.least_top1=99\.9'):
        good = saved(tmp_path / 'good.pth', teacher)
        loop.run(tiny_config(teacher__path=good, teacher__least_top1=99.9, epochs=1), tmp_path / 'strict', quiet)


def test_weights_of_another_network_are_refused(teacher, tmp_path):
    path = saved(tmp_path / 'w.pth', teacher)
    with pytest.raises(UserError, match=r'does not fit plain-6.*downsample'):
        loop.run(tiny_config(procedure='plain', restore=path), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
