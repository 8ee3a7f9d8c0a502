"""Ablations in one command: variants are read, run, kept apart and reported."""

import json
import re
import resource
import sys

import pytest

from jointrd_jax import cli, compare, config as config_lib
from jointrd_jax.errors import UserError
from jointrd_jax.runs import run_directory
from jointrd_jax.system import files
from tests.support.configs import ROOT, shipped_config, tiny_config


def test_variants_are_read():
    found = compare.parse_variants('eta0: mix.eta=0; more:mix.taps=1,3 config.mix.average_paths=False ;base:')
    assert found == {'eta0': {'mix.eta': 0.0}, 'more': {'mix.taps': (1, 3), 'mix.average_paths': False}, 'base': {}}
    assert compare.parse_variants('') == {}


@pytest.mark.parametrize(
    'text, message',
    [
        ('eta0', "'eta0' must be 'NAME: field=value"),
        ('a/b: mix.eta=0', 'each NAME used once'),
        ('..: mix.eta=0', 'each NAME used once'),
        ('.: mix.eta=0', 'each NAME used once'),
        ('a: mix.eta=0; a: mix.eta=1', 'each NAME used once'),
        ('a: mix.eta', "'mix.eta' is not field=value"),
        ('a: mix.eat=1', "no field 'mix.eat'; did you mean mix.eta"),
        ('a: mix.eta=much', "config.mix.eta='much' is not accepted; it must be: 0 to 1"),
        ('a: seed=1', 'variant a: seed is not for variants; use --seeds'),
        ('a: procedure=plain', 'procedure is not for variants; use --procedures'),
        ('a: config.teacher.path=runs/resnet', 'teacher.path is not for variants; use --config.teacher.path'),
        ('a: dataset.fold=1/5; b: dataset.fold=2/5', 'variant a: dataset.fold is not for variants; use --folds'),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UserError, match=message.replace('(', r'\(')):
        compare.parse_variants(text)


def test_values_of_every_field_can_be_written():
    for name, field in config_lib.FIELDS.items():
        value = field.default
        text = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert config_lib.from_text(name, text) == value, name


@pytest.mark.parametrize(
    'procedures, variants, message',
    [
        (
            ('plain', 'jointrd'),
            {'a': {}, 'taps': {'mix.taps': (99,)}},
            'jointrd/taps: config.mix: taps after the blocks',
        ),
        (('plain', 'feature_kd'), None, 'feature_kd: config.procedure=feature_kd needs config.distill.weight'),
        (('plain',), {'a': {}, 'b': {'mix.eta': 3.0}}, 'plain/b: config.mix.eta=3.0 is not accepted'),
        (('plain',), {'a': {}, 'b': {'model.shortcuts': 'none,all,none'}}, 'plain/b: 3 per-block choices were given'),
        (('jointrd',), {'a': {}, 'wide': {'model.width': 8}}, 'jointrd/wide: the teacher of all has width 4'),
        (('resnet', 'plain+dirac', 'plain'), {'a': {'batch_size': 0}}, 'resnet/a: config.batch_size=0'),
    ],
)
def test_a_bad_cell_is_found_before_any_is_trained(procedures, variants, message, tmp_path):
    with pytest.raises(UserError, match=f'^{re.escape(message)}'):
        compare.run(tiny_config(), tmp_path / 'c', [0, 1], procedures, variants)
    assert not (tmp_path / 'c').exists()


def test_a_run_of_another_config_is_found_before_any_is_trained(tmp_path):
    there = tmp_path / 'plain' / 'seed1'
    there.mkdir(parents=True)
    files.write_json(
        there / run_directory.CONFIG, config_lib.flatten(tiny_config(procedure='plain', seed=1, epochs=99))
    )
    with pytest.raises(UserError, match=r'^plain: .*seed1 holds a run of another config \(epochs: 99 there'):
        compare.run(tiny_config(), tmp_path, [0, 1], ('plain',))
    assert not (tmp_path / 'plain' / 'seed0').exists()


def test_the_name_of_a_procedure_says_how_its_student_is_made(tmp_path):
    recipe = shipped_config('imagenet')  # which is, by itself
    for name in ('plain', 'jointrd'):
        with pytest.raises(
            UserError, match=rf'reparam=dirac is set, but the row {name} is for networks.*write {name}\+dirac'
        ):
            compare.plan(recipe, tmp_path, [0], ('resnet', name))
    planned = compare.plan(recipe, tmp_path, [0], ('resnet', 'jointrd+dirac'))
    assert [(run.name, run.config.model.reparam) for run in planned] == [('resnet', 'none'), ('jointrd+dirac', 'dirac')]
    recipe.model.reparam = 'none'
    planned = compare.plan(recipe, tmp_path, [0], ('plain', 'plain+dirac'), {'a': {}, 'b': {'model.reparam': 'dirac'}})
    assert [run.config.model.reparam for run in planned] == ['none', 'dirac', 'dirac', 'dirac']
    (run,) = compare.plan(recipe, tmp_path, [0], ('plain+branches+prelu',))
    assert (run.config.model.reparam, run.config.model.activation) == ('branches', 'prelu')
    planned = compare.plan(recipe, tmp_path, [0], ('resnet', 'plain', 'plain+identity+prelu'))
    assert [run.config.model.init for run in planned] == ['random', 'random', 'identity']
    recipe.model.init = 'identity'
    with pytest.raises(
        UserError, match=r'init=identity is set, but the row plain is for networks.*write plain\+identity'
    ):
        compare.plan(recipe, tmp_path, [0], ('plain',))
    recipe.model.init = 'random'
    recipe.model.shortcuts = 'projection'
    planned = compare.plan(recipe, tmp_path, [0], ('resnet', 'plain', 'jointrd+identity+fading'))
    assert [run.config.model.shortcuts for run in planned] == ['projection', 'projection', 'fading']
    recipe.model.shortcuts = 'fading'
    with pytest.raises(UserError, match=r'shortcuts=fading is set, but the row plain is for networks.*plain\+fading'):
        compare.plan(recipe, tmp_path, [0], ('plain',))
    planned = compare.plan(recipe, tmp_path, [0], ('resnet', 'plain+fading'))
    assert [run.config.model.shortcuts for run in planned] == ['none', 'fading']
    recipe.model.shortcuts = 'none'
    for name, message in (('plain+dirac+branches', 'exclude each other'), ('plain+swish', 'tailored')):
        with pytest.raises(UserError, match=message):
            compare.plan(recipe, tmp_path, [0], (name,))


def test_the_ablations_of_the_docs_can_all_be_run(tmp_path):
    (text,) = re.findall(r"runs/ablations .*--variants '([^']*)'", (ROOT / 'docs' / 'experiments.md').read_text())
    variants = compare.parse_variants(text)
    planned = compare.plan(shipped_config('digits'), tmp_path, [0, 1, 2], ('jointrd',), variants)
    assert len(planned) == 3 * (1 + len(variants)) and len(variants) == 7


def test_a_picture_is_whole_or_absent(tmp_path):
    files.append_line(tmp_path / run_directory.METRICS, json.dumps({'epoch': 1, 'top1': 50.0}))
    result = {'plain': {'runs': [{'path': '.', 'last_top1': 50.0}]}}
    (tmp_path / 'compare.png').write_text('before')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a picture is larger
    try:
        with pytest.raises(UserError, match=r'cannot write .*compare\.png: File too large'):
            compare.draw(tmp_path, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / 'compare.png').read_text() == 'before' and len(list(tmp_path.iterdir())) == 2
    compare.draw(tmp_path, result)
    assert (tmp_path / 'compare.png').read_bytes().startswith(b'\x89PNG')


def test_ablation(tmp_path, watched_run):
    config = tiny_config(model__stage_sizes=(1, 1, 1), epochs=1, batch_size=256)
    config.teacher.path = str(watched_run / 'teacher')
    variants = {'eta0': {'mix.eta': 0.0}, 'stage2': {'mix.taps': (2,)}, 'drawn': {'mix.num_taps': 1, 'mix.tap_sets': 2}}
    result = compare.run(config, tmp_path, [0], ('jointrd',), variants, with_report=True)
    assert list(result) == ['jointrd/eta0', 'jointrd/stage2', 'jointrd/drawn']
    assert result['jointrd/stage2']['runs'][0]['taps'] == [2]
    kept = run_directory.read_config(tmp_path / 'jointrd' / 'eta0' / 'seed0')
    assert kept.mix.eta == 0 and tuple(kept.mix.taps) == ()
    assert json.loads((tmp_path / 'compare.json').read_text()) == result
    page = (tmp_path / 'report.html').read_text()
    assert 'jointrd eta=0<' in page and 'jointrd taps=2<' in page
    again = compare.run(config, tmp_path, [0], ('jointrd',), variants)
    assert again == result


def test_a_cell_without_a_result_is_no_crash(tmp_path):
    """A run whose accuracy is not known, and a metrics file that was torn or is gone."""
    cell = compare.statistics_of([{'last_top1': None, 'best_top1': 90.0}])
    assert compare.spread(cell, 'last_top1') == 'unmeasured' and compare.spread(cell, 'best_top1') == '90.00'
    some_skipped = [{'last_top1': 90.0, 'steps': 40, 'skipped_steps': skipped} for skipped in (3, 0)]
    cell = compare.statistics_of([{'best_top1': 90.0, 'seed': seed, **run} for seed, run in enumerate(some_skipped)])
    assert compare.spread(cell, 'last_top1') == '90.00 ± 0.00 (3 of 80 steps skipped)'
    path = tmp_path / 'metrics.jsonl'
    assert compare.read_curve(path) == {}
    path.write_text('{"epoch": 1, "top1": 50.0}\n{"epoch": 2, "to')
    assert compare.read_curve(path) == {1: 50.0}


@pytest.mark.parametrize('seeds', ['²', '9' * 5000, '-1', ''])
def test_seeds_are_whole_numbers(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', sys.argv)
    with pytest.raises(SystemExit, match='2'):
        cli.run('compare', ['--config=configs/digits.py', f'--workdir={tmp_path / "x"}', f'--seeds={seeds}'])
    error = capsys.readouterr().err
    assert error.startswith('error: ') and len(error.splitlines()) == 1
    assert not (tmp_path / 'x').exists()
