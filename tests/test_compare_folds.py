"""A comparison over folds, and a teacher that has seen the evaluation images."""

import json

import numpy as np
import pytest

from jointrd_jax import compare
from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory
from jointrd_jax.train import loop
from tests.support.configs import QuietReporter, tiny_config


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('folds')
    config = tiny_config(epochs=1, batch_size=64, model__stage_sizes=(1, 1))
    return workdir, compare.run(config, workdir, [0, 1], ('resnet', 'jointrd+prelu'), folds=2, with_report=True)


def test_every_image_is_tested_once_per_seed_and_paired_with_the_resnet(compared):
    workdir, result = compared
    runs = result['jointrd+prelu']['runs']
    assert [(run['seed'], run['fold']) for run in runs] == [(0, '1/2'), (0, '2/2'), (1, '1/2'), (1, '2/2')]
    right = {run['path']: run_directory.read_correct(workdir / run['path']) for run in runs}
    for run in runs:
        assert run['last_top1'] == pytest.approx(100 * right[run['path']].mean(), abs=1e-3)
        assert run['teacher'] == str(
            workdir / 'resnet' / f'fold{run["fold"].replace("/", "of")}' / f'seed{run["seed"]}'
        )
    assert sum(map(len, right.values())) == 2 * 1797
    difference = result['jointrd+prelu']['difference']
    resnets = [run_directory.read_correct(workdir / run['path']) for run in result['resnet']['runs']]
    mean = 100 * (np.concatenate(list(right.values())).mean() - np.concatenate(resnets).mean())
    assert difference['mean'] == pytest.approx(mean) and (difference['seeds'], difference['images']) == (2, 1797)
    assert difference['low'] <= difference['mean'] <= difference['high']
    assert result['resnet']['difference'] is None
    assert json.loads((workdir / 'compare.json').read_text()) == json.loads(json.dumps(result))


def test_the_report_draws_the_differences(compared):
    page = (compared[0] / 'report.html').read_text()
    assert 'Top-1 less that of the ResNet' in page and 'jointrd+prelu' in page and '95 % interval' in page


def test_a_teacher_of_another_fold_is_refused(compared, tmp_path):
    config = tiny_config(
        dataset__fold='2/2', model__stage_sizes=(1, 1), teacher__path=str(compared[0] / 'resnet' / 'fold1of2' / 'seed0')
    )
    with pytest.raises(UserError, match='fold 1/2: it has seen images that this run, of .*fold 2/2'):
        loop.run(config, tmp_path / 'run', QuietReporter('run'))
    assert not (tmp_path / 'run').exists()
