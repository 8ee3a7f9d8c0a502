"""Ablations in one command: variants are read, run, kept apart and reported."""

import json

import pytest
from conftest import tiny_config

from jointrd_jax import compare, config as config_lib, runs
from jointrd_jax.errors import UserError


def test_variants_are_read():
    found = compare.parse_variants('eta0: mix.eta=0; more:mix.taps=1,3 config.mix.average_paths=False ;base:')
    assert found == {'eta0': {'mix.eta': 0.0}, 'more': {'mix.taps': (1, 3), 'mix.average_paths': False}, 'base': {}}
    assert compare.parse_variants('') == {}


@pytest.mark.parametrize(
    'text, message',
    [
        ('eta0', "'eta0' is not 'NAME: field=value"),
        ('a/b: mix.eta=0', 'with a name of its own'),
        ('a: mix.eta=0; a: mix.eta=1', 'with a name of its own'),
        ('a: mix.eta', "'mix.eta' is not field=value"),
        ('a: mix.eat=1', "no field 'mix.eat'; did you mean mix.eta"),
        ('a: mix.eta=much', "config.mix.eta='much' is not accepted; it must be: 0 to 1"),
        ('a: seed=1', 'seed is not for variants; use --procedures, --seeds'),
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


def test_ablation(tmp_path, watched_run):
    config = tiny_config(epochs=1, batch_size=256)
    config.teacher.path = str(watched_run / 'teacher')
    variants = {'eta0': {'mix.eta': 0.0}, 'stage2': {'mix.taps': (2,)}}
    result = compare.run(config, tmp_path, [0], ('jointrd',), variants, with_report=True)
    assert list(result) == ['jointrd/eta0', 'jointrd/stage2']
    assert result['jointrd/stage2']['runs'][0]['taps'] == [2]
    kept = runs.read_config(tmp_path / 'jointrd' / 'eta0' / 'seed0')
    assert kept.mix.eta == 0 and tuple(kept.mix.taps) == ()
    assert json.loads((tmp_path / 'compare.json').read_text()) == result
    page = (tmp_path / 'report.html').read_text()
    assert 'jointrd taps=() eta=0' in page and 'jointrd taps=2 eta=0.5' in page
    again = compare.run(config, tmp_path, [0], ('jointrd',), variants)
    assert again == result
