import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jointrd_jax import config as config_lib, recipes
from jointrd_jax.errors import UserError
from tests.support.configs import ROOT, shipped_config, tiny_config

SHIPPED = recipes.shipped()


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_configs_are_valid_and_say_what_they_are(name):
    config_lib.validate(shipped_config(name))
    text = Path(ROOT, 'configs', f'{name}.py').read_text()
    for word in ('Command', 'Hardware'):
        assert word in text, f'{name}.py does not name its {word}'


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_recipes_survive_a_shorter_run(name):
    config_lib.validate(shipped_config(name, epochs=1))


def test_every_field_is_read():
    package = ROOT / 'jointrd_jax'
    code = {path: path.read_text() for path in package.rglob('*.py') if path.parent != package / 'config'}
    for name in config_lib.FIELDS:
        leaf = name.split('.')[-1]
        assert any(re.search(rf'\.{leaf}\b', text) for text in code.values()), f'no code reads config.{name}'


def set_by_name(path: Path) -> Iterator[str]:
    """What a test file gives by name: keywords of calls that make configs, keys, assigned attributes, and options."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(('config', 'load', 'dict')):
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)
        elif isinstance(node, ast.Dict):
            yield from (key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield ast.unparse(node).removeprefix('config.')
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r'--config\.([\w.]+)=', node.value)


def test_every_field_is_set_by_a_test():
    """A field that no test sets can be ignored or misread unnoticed.

    A test that takes `FIELDS` as a whole, such as the fuzz, does not count: it does not know what a field should do.
    """
    tests = ROOT / 'tests'
    found = {name.replace('__', '.') for path in tests.rglob('*.py') for name in set_by_name(path)}
    # The tests of datasets give the fields of `dataset` without their group.
    found |= {f'dataset.{name}' for path in (tests / 'datasets').glob('*.py') for name in set_by_name(path)}
    missing = config_lib.FIELDS.keys() - found
    assert not missing, f'no test sets {", ".join(sorted(missing))}'


@pytest.mark.parametrize(
    'overrides, message',
    [
        (dict(procedure='jointd'), r"config.procedure='jointd'.*resnet \| plain \| jointrd"),
        (dict(model__depth=35), r'config.model.depth=35.*18 \| 34 \| 50'),
        (dict(model__shortcuts='some'), r"config.model.shortcuts='some'.*all \| projection \| fading \| none"),
        (dict(optimizer__schedule='linear'), r'cosine \| step \| constant'),
        (dict(batch_size=0), 'config.batch_size=0.*>= 1'),
        (dict(batch_size=-8), 'config.batch_size=-8'),
        (dict(model__width=0), 'config.model.width=0'),
        (dict(model__stage_sizes=(1, 0)), r'config.model.stage_sizes=\(1, 0\)'),
        (dict(optimizer__learning_rate=float('nan')), 'learning_rate=nan'),
        (dict(mix__fraction=3.0), 'config.mix.fraction=3.0 is not accepted; it must be: 0 to 1'),
        (dict(optimizer__warmup_fraction=7.0), 'config.optimizer.warmup_fraction=7.0 is not accepted'),
        (
            dict(optimizer__drop_epochs=(1, 9), optimizer__schedule='step'),
            r'drop_epochs=\(1, 9\) reaches beyond the run: config.epochs=2',
        ),
        (dict(optimizer__drop_epochs=(0.5, 0.75)), 'config.optimizer.drop_epochs=.*whole numbers'),
        (dict(optimizer__drop_fractions=(0.5, 1.5)), 'config.optimizer.drop_fractions=.*between 0 and 1'),
        (dict(procedure='feature_kd'), 'feature_kd needs config.distill.weight > 0'),
        (dict(mix__taps=(1,), mix__num_taps=2), 'exclude each other'),
        (dict(mix__taps=(3, 2)), 'must be ascending'),
        (dict(mix__tap_sets=2), 'config.mix.tap_sets=2 needs config.mix.num_taps'),
        (
            dict(mix__num_taps=1, mix__tap_sets=2, steps_per_dispatch=3),
            'config.mix.tap_sets=2 and config.steps_per_dispatch=3 exclude each other.*every step draws its taps',
        ),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(tiny_config(**overrides))


def test_unknown_and_missing_fields():
    config = tiny_config()
    with config.unlocked():
        config.model.widht = 3
    with pytest.raises(UserError, match="no field 'model.widht'; did you mean model.width"):
        config_lib.validate(config)
    config = tiny_config()
    del config.mix.eta
    with pytest.raises(UserError, match="lacks the field 'mix.eta'"):
        config_lib.validate(config)
