"""Every command of the README and the docs is run as printed, training made small.

The convention: commands stand in ```bash boxes (a line each, `\\` continues one) and are run in a copy of the
repository, one after the other; those that train or measure become small by SHRINK. A title "takes half an hour" says
how long a box takes, and it is run like one without; "needs hardware" says what a box needs, and it is not run.
```python boxes of the docs are run as they are, unless they need something.
What .ci/run itself does (environment, installation, tests) is not done again here: of README's two set-up commands the
training is left.
"""

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest

from jointrd_jax import config as config_lib
from jointrd_jax.cli import COMMANDS
from tests.support.configs import QUICK_FLAGS, ROOT

PAGES = sorted(path for path in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')] if path.exists())
COMMAND = r'(?:\bjointrd |-m jointrd_jax\.)'
TRAINS = rf'{COMMAND}(?:main|train|compare|benchmark --config)\b'
SHRINK = {  # what is added to a command that matches
    TRAINS: '--config.epochs=1 --config.model.width=4 --config.batch_size=256',
    rf'{TRAINS}(?!.*stage_sizes)': '--config.model.stage_sizes=1,1',  # a list can be given once
    rf'{COMMAND}compare': '--seeds=0',
    rf'{COMMAND}benchmark': '--rounds=1 --procedures=plain',
    rf'{COMMAND}benchmark(?!.*--config)': '--shapes=18:8:4 --width=4',
}
PROGRAMS = 'jointrd|python|pytest|pip|ruff|mkdocs|git|srun|gcloud|tensorboard|wandb'
DONE_BY_CI = re.compile(r'pip install|-m venv|-m pytest|\.ci/run|^ruff|^git clone|^cd ')
BOX = re.compile(r'^```(bash|python)(?: title="([^"]*)")?\n(.*?)^```', re.M | re.S)


def boxes(page):
    """(language, title, text) of a page's boxes."""
    return BOX.findall(page.read_text())


def commands(text):
    lines = text.replace('\\\n', ' ').splitlines()
    bare = (re.sub(r'(^|\s)#.*', '', line).strip() for line in lines)
    return [line for line in bare if line]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of what a user has after cloning."""
    root = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'scripts', 'examples', 'jointrd_jax', 'docs', 'mkdocs.yml'):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, root / name)
    (root / 'bin').mkdir()
    for program, start in {'python': sys.executable, 'jointrd': f'{sys.executable} -m jointrd_jax'}.items():
        (root / 'bin' / program).write_text(f'#!/bin/sh\nexec {start} "$@"\n')
        (root / 'bin' / program).chmod(0o755)
    return root


@functools.cache
def run(command, root):
    """Run a command once, however many pages print it."""
    environment = {
        **os.environ,
        'PATH': f'{root}/bin:{os.environ["PATH"]}',
        'PYTHONPATH': str(root),
        'XLA_FLAGS': QUICK_FLAGS,
    }
    return subprocess.run(
        ['bash', '-euc', command], cwd=root, env=environment, capture_output=True, text=True, timeout=1200
    )


def without_setup(command):
    """The part of a command that .ci/run does not do, with the programs of the environment at hand; '' for none."""
    parts = [part for part in command.split(' && ') if not DONE_BY_CI.search(part)]
    return re.sub(r'\.venv\S*/bin/', '', ' && '.join(parts))


def shrunk(command):
    return ' '.join([command, *(added for pattern, added in SHRINK.items() if re.search(pattern, command))])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_run_as_printed(page, clone):
    for language, title, text in boxes(page):
        if title.startswith('needs'):
            continue
        if language == 'python':
            (clone / 'box.py').write_text(text)
            steps = ['python box.py']
        else:
            steps = [shrunk(command) for command in map(without_setup, commands(text)) if command]
        for step in steps:
            done = run(step, clone) if step != 'python box.py' else run.__wrapped__(step, clone)
            assert done.returncode == 0, f'{page.name}: {step}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'


def test_pages_keep_the_convention():
    for page in PAGES:
        for _, title, _ in boxes(page):
            assert not title or title.startswith(('needs ', 'takes ')), (page, title)
        text = BOX.sub('', page.read_text())
        indented = re.findall(rf'^    (?:\w+=\S+ )*(?:{PROGRAMS}|scripts/)\b.*', text, re.M)
        assert not indented, f'{page.name}: {indented} belong in a ```bash box'


def test_every_program_and_field_that_is_named_exists():
    for page in PAGES:
        text = page.read_text()
        for command in set(re.findall(r'^ *jointrd (\w+)|`jointrd (\w+)', text, re.M)):
            assert ''.join(command) in COMMANDS, (page, command)
        for module in set(re.findall(r'python -m jointrd_jax\.(\w+)', text)):
            path = ROOT / 'jointrd_jax' / module
            assert path.with_suffix('.py').exists() or (path / '__main__.py').exists(), (page, module)
        for script in set(re.findall(r'\b((?:scripts|configs|examples|benchmarks)/\w+\.(?:py|sh))', text)):
            assert (ROOT / script).exists(), (page, script)
        for name in set(re.findall(r'\b(test_\w+\.py)', text)):
            assert any((ROOT / 'tests').rglob(name)), (page, name)
        if page.name == 'cases.md':  # which says what is answered to names that do not exist
            continue
        for name in set(re.findall(r'--config\.([\w.]*\w)=', text)) - {'field', 'x'}:
            assert name in config_lib.FIELDS, (page, name)


def test_the_docs_build_without_a_warning(tmp_path):  # no --quiet: it would hide warnings from --strict too
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    warnings = [line for line in done.stderr.splitlines() if line.startswith(('WARNING', 'ERROR'))]
    assert not warnings and done.returncode == 0, '\n'.join(warnings) or done.stderr
    reference = (tmp_path / 'site' / 'configuration' / 'index.html').read_text()
    assert all(f'<code>{name}</code>' in reference for name in config_lib.FIELDS)
    assert 'joint_loss' in (tmp_path / 'site' / 'api' / 'index.html').read_text()
    for page in (tmp_path / 'site').rglob('*.html'):
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?://(?!jointrd)', page.read_text()), page
