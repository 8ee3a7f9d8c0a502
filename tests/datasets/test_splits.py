"""What images a run is evaluated on: part of its data's name, and what two runs must share to be compared."""

import dataclasses
import json

import pytest

from jointrd_jax import compare, data
from jointrd_jax.data.folds import name_of_split, overlap, parts
from jointrd_jax.errors import UserError
from jointrd_jax.report import collect
from jointrd_jax.runs import run_directory, summary
from jointrd_jax.train import loop
from tests.support import real_data
from tests.support.configs import tiny_config

SMALL = dict(epochs=1, model__stage_sizes=(1,), batch_size=64)


@pytest.mark.parametrize('trained, evaluated, seen', [
    ('', '', False), ('fold 1/2', 'fold 1/2', False), ('fold 1/2', 'fold 2/2', True), ('', 'fold 1/2', True),
    ('fold 1/2', '', True), ('', 'validation 300', True), ('validation 300', '', False),
    ('validation 300', 'validation 200', False), ('validation 200', 'validation 300', True),
    ('validation 300', 'fold 1/2', True), ('eval_fraction 0.1', 'eval_fraction 0.2', True),
    ('splits train[:50%] to train[50%:]', '', False),
])  # fmt: skip
def test_who_has_seen_the_evaluation_images(trained, evaluated, seen):
    names = [f'digits:{split}' if split else 'digits' for split in (trained, evaluated)]
    assert overlap(*names) == seen
    assert not overlap(names[0], names[1].replace('digits', 'folder:5f (2 classes)'))
    assert all(name_of_split(*parts(name)) == name for name in names)


def test_names_say_how_images_were_split(tmp_path):
    assert data.load(tiny_config(dataset__validation_size=300)).name == 'digits:validation 300'
    assert data.load(tiny_config(dataset__fold='2/3')).name == 'digits:fold 2/3'
    root = real_data.folder(tmp_path / 'images', train=6, val=0)
    names = {}
    for share in (0.2, 0.5):
        config = real_data.config('folder', root / 'train', batch_size=2, eval_batch_size=4)
        config.dataset.update(dict(image_size=32, resize=32, eval_fraction=share))
        names[share] = data.load(config).name
    assert len({parts(name)[0] for name in names.values()}) == 1
    assert [parts(name)[1:] for name in names.values()] == [('eval_fraction', '0.2'), ('eval_fraction', '0.5')]
    with pytest.raises(UserError, match='dataset.fold=1/2 and config.dataset.validation_size=9 exclude each other'):
        loop.run(tiny_config(dataset__fold='1/2', dataset__validation_size=9), tmp_path / 'run')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """ResNets that were trained on all training images of the digits, on all but 300, and on a fold."""
    root = tmp_path_factory.mktemp('runs')
    fields = {'all': {}, 'held': dict(dataset__validation_size=300), 'fold': dict(dataset__fold='1/2')}
    for name, field in fields.items():
        loop.run(tiny_config(procedure='resnet', **SMALL, **field), root / name)
    return root


def test_teachers_and_first_weights_that_saw_the_images_are_refused(runs, tmp_path):
    student = dict(procedure='logit_kd', dataset__validation_size=300, **SMALL)
    with pytest.raises(UserError, match='trained on digits: it has seen images .* of digits:validation 300'):
        loop.run(tiny_config(teacher__path=str(runs / 'all'), **student), tmp_path / 'run')
    restored = dict(procedure='resnet', dataset__fold='2/2', **SMALL)
    with pytest.raises(UserError, match='config.restore=.*fold 1/2: it has seen images that this run, of .*fold 2/2'):
        loop.run(tiny_config(restore=str(runs / 'fold'), **restored), tmp_path / 'run')
    student |= dict(dataset__validation_size=0, teacher__least_top1=0.0)
    loop.run(tiny_config(teacher__path=str(runs / 'held'), **student), tmp_path / 'run')


def test_a_finished_run_is_not_one_of_other_data(runs, tmp_path):
    config = tiny_config(procedure='resnet', **SMALL)
    there = summary.read(runs / 'all')
    kept = (runs / 'all' / run_directory.CONFIG).read_text()
    dataclasses.replace(there, eval_images=['folder:5f (10 classes)', 500]).write(runs / 'all')
    try:
        with pytest.raises(UserError, match=r'finished run of other data: 500 images of folder:5f .* now'):
            config.checkpoint.keep = 9
            loop.run(config, runs / 'all')
    finally:
        there.write(runs / 'all')
    assert (runs / 'all' / run_directory.CONFIG).read_text() == kept


def test_only_runs_of_one_seed_on_the_same_images_are_paired(runs, tmp_path):
    config = tiny_config(teacher__path=str(runs / 'all'), **SMALL)
    found = compare.run(config, tmp_path / 'seeds', [0, 1], ('plain',))['plain']['difference']
    assert (found['seeds'], found['images']) == (1, 500)
    config.teacher.path = str(runs / 'held')
    assert compare.run(config, tmp_path / 'held', [0], ('plain',))['plain']['difference'] is None


def test_the_report_keeps_datasets_and_folds_apart(runs, tmp_path):
    root = tmp_path / 'runs'
    config = tiny_config(**SMALL)
    compare.run(config, root / 'split', [0], ('resnet', 'plain'))
    compare.run(config, root / 'folds', [0, 1], ('resnet', 'plain'), folds=2)
    found = {variant.name: variant for variant in collect.variants(collect.find([root]))}
    assert list(found) == [f'{name} on digits{split}' for name in ('resnet', 'plain') for split in ('', ':fold of 2')]
    differences = {name: collect.to_resnet(variant, list(found.values())) for name, variant in found.items()}
    assert differences['plain on digits'][3:] == (1, 500)
    assert differences['plain on digits:fold of 2'][3:] == (2, 1797)
    for path in (root / 'split').rglob(summary.SUMMARY):  # as if of a folder of other images
        there = json.loads(path.read_text())
        path.write_text(json.dumps({**there, 'eval_images': ['folder:5f (10 classes)', 500]}))
    assert 'plain on folder:5f (10 classes)' in {variant.name for variant in collect.variants(collect.find([root]))}
