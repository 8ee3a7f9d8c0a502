"""configs/finetune.py: a new head on a trained network."""

import importlib.util

import jax
import numpy as np
import pytest

from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory
from jointrd_jax.train import loop
from tests.support import real_data
from tests.support.configs import ROOT, tiny_config


def finetune_config(run, root):
    spec = importlib.util.spec_from_file_location('finetune', ROOT / 'configs' / 'finetune.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(str(run))
    config.dataset.name, config.dataset.data_dir = 'folder', str(root)
    config.dataset.image_size = config.dataset.resize = 16
    config.dataset.workers, config.epochs, config.batch_size, config.eval_batch_size = 0, 1, 4, 4
    return config


def test_a_trained_network_gets_a_new_head(tmp_path, quiet):
    root = real_data.folder(tmp_path / 'photos', train=8, val=4, classes=('ape', 'cat', 'dog'))
    first = finetune_config('', root)
    first.update_from_flattened_dict({'model.stage_sizes': (1, 1), 'model.width': 4, 'restore_head': 'keep'})
    loop.run(first, tmp_path / 'first', quiet)

    other = real_data.folder(tmp_path / 'others', train=8, val=4)
    config = finetune_config(tmp_path / 'first', other)
    assert config.model.width == 4 and config.procedure == 'plain'
    config.optimizer.learning_rate = 1e-9
    loop.run(config, tmp_path / 'second', quiet)
    before, after = (run_directory.load(tmp_path / name) for name in ('first', 'second'))
    assert after.data.classes == ('cat', 'dog')
    assert after.variables['params']['head']['kernel'].shape[-1] == 2
    for block in before.network.block_names:
        a, b = before.variables['params'][block], after.variables['params'][block]
        np.testing.assert_allclose(a['conv1']['kernel'], b['conv1']['kernel'], atol=1e-6)

    config.restore_head = 'keep'
    with pytest.raises(UserError, match='has 3 classes but the dataset of this run has 2'):
        loop.run(config, tmp_path / 'third', quiet)
    with pytest.raises(UserError, match='restore_head=new needs config.restore=RUN'):
        loop.run(finetune_config('', root), tmp_path / 'third', quiet)
    assert not (tmp_path / 'third').exists()


@pytest.mark.parametrize(
    'road',
    [
        dict(model__init='identity', model__activation='prelu', model__slope_layers=3, model__shortcuts='fading'),
        dict(model__init='identity', model__activation='annealed', model__slope=0.5),
        dict(model__activation='tailored', model__reparam='branches'),
    ],
)
def test_a_network_of_any_road_is_fine_tuned_as_it_is_deployed(road, tmp_path, quiet):
    root = real_data.folder(tmp_path / 'photos', train=8, val=4)
    first = finetune_config('', root)
    shape = {'model.stage_sizes': (1, 1), 'model.width': 4, 'restore_head': 'keep', 'epochs': 2}
    first.update_from_flattened_dict(shape | {name.replace('__', '.'): value for name, value in road.items()})
    loop.run(first, tmp_path / 'first', quiet)
    config = finetune_config(tmp_path / 'first', root)
    config.restore_head, config.optimizer.learning_rate, config.optimizer.weight_decay = 'keep', 1e-30, 0.0
    loop.run(config, tmp_path / 'second', quiet)
    before, after = (run_directory.load(tmp_path / name) for name in ('first', 'second'))
    assert before.network == after.network and before.network.shortcuts == 'none'
    assert before.network.activation in ('relu', 'leaky', 'prelu')
    jax.tree.map(np.testing.assert_array_equal, before.variables['params'], after.variables['params'])


def test_another_number_of_channels_is_refused(tmp_path, quiet):
    loop.run(
        tiny_config(procedure='plain', epochs=1, model__stage_sizes=(1,), batch_size=512), tmp_path / 'digits', quiet
    )
    root = real_data.folder(tmp_path / 'photos')
    with pytest.raises(UserError, match='takes images of 1 channel, this dataset has 3'):
        loop.run(finetune_config(tmp_path / 'digits', root), tmp_path / 'run', quiet)
