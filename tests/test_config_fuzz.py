"""Any value in any field of any shipped config: the run could start, or there is one clear line and nothing made."""

import functools
import subprocess
import sys
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st
from ml_collections import config_flags

from jointrd_jax import cli, config as config_lib, recipes
from jointrd_jax.data import digits
from jointrd_jax.errors import UserError
from jointrd_jax.train import setup, trackers
from jointrd_jax.train.assembly import Assembly
from tests.support.configs import ROOT, shipped_config
from tests.support.faults import LONG

SHIPPED = recipes.shipped()
CASES = 3000 if LONG else 60  # of each shipped config

hypothesis.settings.register_profile(
    'faults',
    deadline=None,
    max_examples=CASES,
    suppress_health_check=list(hypothesis.HealthCheck),
    derandomize=not LONG,
)
hypothesis.settings.load_profile('faults')

text = st.one_of(
    st.text(max_size=30), st.sampled_from(['', '\x00', '\ud800', '../..', '/', 'é' * 5000, '\n', '٣', 'nan'])
)
number = st.one_of(
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, 10**18, 10**400, 10**5000, 1e300, 1e-300, 5e-324, -0.0, True, False, 0.999999999]),
)
scalar = st.one_of(number, text, st.none(), st.binary(max_size=5), st.booleans())
anything = st.one_of(scalar, st.lists(scalar, max_size=5).map(tuple), st.lists(number, max_size=20).map(tuple))


def near(name: str) -> st.SearchStrategy:
    """Values of a field's own type, accepted ones among them."""
    default = config_lib.FIELDS[name].default
    choices = [word for word in config_lib.FIELDS[name].accepts.replace(',', ' ').split() if word.isalnum()]
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.one_of(st.integers(0, 9), st.integers(0, 2**33))
    if isinstance(default, float):
        return st.one_of(st.floats(0, 1), st.floats(0, 100), st.floats(allow_nan=True))
    if isinstance(default, tuple):
        return st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**40), st.floats(0, 60)), max_size=9).map(tuple)
    return st.sampled_from([default, *choices])


@st.composite
def changes(draw) -> dict:
    """One to four fields with other values: wrong alone, or contradicting each other."""
    names = draw(st.lists(st.sampled_from(sorted(config_lib.FIELDS)), min_size=1, max_size=4, unique=True))
    return {name: draw(st.one_of(anything, near(name))) for name in names}


@pytest.fixture(autouse=True, scope='module')
def digits_once():
    """The real images, read once, and optional packages, imported once: the fuzz is of the config."""
    trackers.check(shipped_config('digits', log__tensorboard=1, log__tracker='wandb'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, 'read', functools.cache(digits.read))
        yield


def check_line(error: UserError) -> None:
    message = str(error)
    assert message.strip() and len(message.splitlines()) == 1 and len(message) < 3000, message
    message.encode()  # can be printed


def start_or_refuse(config, workdir: Path) -> bool:
    """All that a run does before it makes or compiles something."""
    try:
        dataset, student, method, *_ = setup.make(config, workdir)
    except UserError as error:
        check_line(error)
        return False
    made = Assembly(config, dataset, student, method)
    if student.num_blocks <= 20:  # tracing takes its time
        jax.eval_shape(made.make_state, config.seed)
    assert np.isfinite(made.schedule(config.epochs * made.steps_per_epoch - 1))
    dataset.close()
    return True


@pytest.mark.parametrize('name', SHIPPED)
def test_any_value_in_any_field(name, tmp_path):
    started = []

    @hypothesis.given(changes())
    def fuzz(changed):
        config = shipped_config(name)
        if config.dataset.name != 'digits':
            config.dataset.name, config.batch_size = 'digits', 32
            config.restore_head = 'keep'  # finetune.py names no run to start from
        with config.unlocked(), config.ignore_type():
            for field, value in changed.items():
                *groups, leaf = field.split('.')
                node = config
                for group in groups:
                    node = node[group]
                try:
                    node[leaf] = value
                except OverflowError:  # 10**400 in a field of floats: ml_collections itself refuses
                    return
        started.append(start_or_refuse(config, tmp_path / 'run'))
        assert not (tmp_path / 'run').exists()

    fuzz()
    assert 0.01 < np.mean(started) < 0.99  # both sides are exercised


@pytest.mark.parametrize('value', [{}, {'depth': 18}, 3, None, 'x', [1], [[1]]])
def test_group_replaced(value, tmp_path):
    config = shipped_config('digits')
    with config.unlocked(), config.ignore_type():
        config.model = value
    with pytest.raises(UserError) as caught:
        setup.make(config, tmp_path / 'run')
    check_line(caught.value)


words = st.one_of(
    st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\x00'), max_size=12),
    st.sampled_from(
        ['1', '0.5', 'True', '1,2', '(1,', '()', '1e400', '9' * 5000, '(' * 3000, '[' * 99, 'nan', "'", '=']
    ),
)
fields = st.one_of(
    st.sampled_from(sorted(config_lib.FIELDS)), words, st.sampled_from(['model', 'mix.', '.', 'model.depth.x'])
)
arguments = st.one_of(
    st.tuples(fields, words).map(lambda pair: f'--config.{pair[0]}={pair[1]}'),
    fields.map(lambda field: f'--config.{field}'),
    fields.map(lambda field: f'--noconfig.{field}'),
    words.map(lambda word: f'--{word}'),
    words,
)


@hypothesis.given(st.lists(arguments, min_size=1, max_size=3))
def test_any_command_line(tmp_path_factory, given):
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', None, '', flag_values=values)
    flags.DEFINE_string('workdir', None, '', flag_values=values)
    argv = ['main', '--config=configs/digits.py', '--workdir=unused', *given]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        try:
            values(argv)
            config = holder.value
            config_lib.validate(config)
        except (UserError, Exception) as error:
            message = ' '.join(cli.explain(error, argv).split())
            assert message and len(message) < 12_000
            message.encode('utf-8', 'surrogateescape')


@pytest.mark.parametrize(
    'argument, message',
    [
        ('--config.epochs=1000000000000000000', 'config.epochs=1000000000000000000 is not accepted'),
        ('--config.model.width=1000000000', 'config.model.width=1000000000 is not accepted'),
        ('--config.model.stage_sizes=900,900,900', 'too large a network'),
        ('--config.optimizer.learning_rate=nan', 'config.optimizer.learning_rate=nan is not accepted'),
        ('--config.mix.tap=3', "the config has no field 'mix.tap'; did you mean mix.taps"),
        ('--config.seed=one', 'seed'),
        ('--workdir', 'workdir'),
        ('--workdir=', '--workdir is empty'),
        (f'--workdir=/tmp/{"a" * 300}', 'File name too long'),
        (f'--config.teacher.path=/tmp/{"a" * 300}', 'File name too long'),
        ('--config.restore=\udcff', "'--config.restore=\\udcff' is not UTF-8"),
    ],
)
def test_real_commands(argument, message, tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'jointrd_jax.main', '--config=configs/digits.py', f'--workdir={tmp_path}/run', argument],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1 and result.stderr.startswith('error: ')
    assert not (tmp_path / 'run').exists()
