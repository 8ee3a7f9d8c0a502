"""Runs of earlier versions: what they trained can be used; continuing them is refused with one line."""

import json

import numpy as np
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint_places import DIRECTORY
from jointrd_jax.runs.seal import META, seal
from jointrd_jax.runs.upgrade import upgraded
from jointrd_jax.train import loop
from jointrd_jax.train.history import History
from tests.support.runs import digits_run

# The fields that version 0.1.0 had and this one has not, with its defaults.
BEFORE = {
    'model.dirac': True, 'mix.epochs': 12.0, 'optimizer.warmup_epochs': 0.05, 'optimizer.drop_epochs': [0.5, 45.0],
    'optimizer.drop_every': 0.25, 'optimizer.nesterov': True, 'log.images': 16, 'on_nan': 'rollback', 'nan_factor': 0.5,
    'nan_rollbacks': 3,
}  # fmt: skip
SINCE = (
    'model.reparam', 'model.anneal_fraction', 'mix.fraction', 'optimizer.warmup_fraction', 'optimizer.drop_fractions',
    'nan.action', 'nan.factor', 'nan.rollbacks',
)  # fmt: skip


@pytest.fixture
def old_run(tmp_path):
    """A finished run whose config and summary are as version 0.1.0 wrote them."""
    digits_run(tmp_path / 'run', reparam='dirac')
    path = tmp_path / 'run' / run_directory.CONFIG
    flat = {name: value for name, value in json.loads(path.read_text()).items() if name not in SINCE}
    path.write_text(json.dumps({**flat, 'epochs': 60, **BEFORE}))
    path = tmp_path / 'run' / summary_lib.SUMMARY
    path.write_text(json.dumps({**json.loads(path.read_text()), 'dirac': True, 'best_top1': 90.0}))
    return tmp_path / 'run'


def test_a_finished_run_of_an_earlier_version_can_be_used(old_run):
    run = run_directory.load(old_run)
    assert (run.network.reparam, run.network.shortcuts) == ('dirac', 'none')
    config = run.config
    assert (config.mix.fraction, config.optimizer.warmup_fraction, config.nan.action) == (0.2, 0.05, 'rollback')
    assert config.optimizer.drop_fractions == (0.5, 0.75) and config.optimizer.drop_epochs == ()
    assert run.summary.best_top1 == 90.0
    logits = run.network.apply(run.variables, np.zeros((1, *run.data.image_shape), np.float32)).logits
    assert np.isfinite(logits).all()


@pytest.mark.parametrize('with_config', [True, False])
def test_a_run_of_an_earlier_version_is_not_continued(old_run, quiet, with_config):
    """Also where its config.json is gone and the checkpoint alone says what it was."""
    config = run_directory.read_config(old_run)
    (old_run / summary_lib.SUMMARY).unlink()
    if not with_config:
        newest = old_run / DIRECTORY / '0'
        flat = json.loads((old_run / run_directory.CONFIG).read_text())
        (old_run / run_directory.CONFIG).unlink()
        meta = json.loads((newest / META).read_text())
        (newest / META).write_text(json.dumps({**meta, 'config': flat, 'provenance': {}}))
        seal(newest)
    with pytest.raises(UserError, match=r'run of another version .*mix\.epochs.*; use another --workdir') as error:
        loop.run(config, old_run, quiet)
    assert '\n' not in str(error.value)


def test_a_history_of_an_earlier_version_is_refused():
    with pytest.raises(UserError, match='^run/8 does not hold the history of a run of this version$'):
        History.from_json({'lines': [], 'looks': []}, 'run/8')


def test_the_schedule_of_equal_steps_becomes_a_list_of_drops():
    flat = {'epochs': 120, 'optimizer.schedule': 'every', 'optimizer.drop_every': 30.0, 'optimizer.drop_epochs': [0.5]}
    assert upgraded(flat) == {
        'epochs': 120, 'optimizer.schedule': 'step', 'optimizer.drop_fractions': [0.25, 0.5, 0.75],
    }  # fmt: skip
    assert upgraded(upgraded(flat)) == upgraded(flat)
