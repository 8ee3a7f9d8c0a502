"""The benchmark as a user starts it, with and without what is not needed to measure a step."""

import json
import os
import subprocess
import sys

from conftest import QUICK_FLAGS, ROOT

SMALL = ['--shapes=18:8:4', '--width=4', '--rounds=2']
ONLY_JAX = """
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('ml_collections', 'grain', 'tensorflow_datasets', 'sklearn', 'cv2'):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
runpy.run_module('jointrd_jax.benchmark', run_name='__main__')
"""


def start(*arguments):
    environment = {**os.environ, 'XLA_FLAGS': QUICK_FLAGS}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_it_needs_nothing_but_jax_and_the_step(tmp_path):
    done = start('-c', ONLY_JAX, *SMALL, '--procedures=plain,jointrd,evaluate', f'--out={tmp_path / "out.json"}')
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'out.json').read_text())
    plain, jointrd, evaluation = result['rows']
    assert plain['time_to_plain'] == plain['flops_to_plain'] == 1
    assert 1.2 < jointrd['flops_to_plain'] < 3  # three tails, and a teacher for the distillation
    assert evaluation['flops'] < plain['flops'] / 2.5 and 'time_to_plain' not in evaluation
    assert all(row['step_ms'] > 0 and 0 < row['share_of_peak'] for row in result['rows'])
    assert result['peak']['flops_per_second'] > 0 and 'jointrd' in done.stdout


def test_a_config_on_its_own_data(tmp_path):
    shrink = ['--config.model.stage_sizes=1,1', '--config.model.width=4', '--procedures=jointrd', '--rounds=1']
    out, option = tmp_path / 'out.json', 'xla_cpu_multi_thread_eigen=false'
    shrink += [f'--out={out}', f'--compiler_options={option}']
    done = start('-m', 'jointrd_jax.benchmark', '--config', 'configs/digits.py', *shrink)
    assert done.returncode == 0, done.stderr
    row, other = json.loads(out.read_text())['rows']
    assert (row['shape'], row['batch_size']) == ('digits', 32)
    assert other['compiler_option'] == option and other['time_to_default'] > 0


def test_bad_input_is_one_line():
    for arguments, message in (
        (['--shapes=18'], "'18' is not DEPTH:PIXELS:BATCH"),
        (['--shapes=19:32:8'], 'resnet19'),
        (['--procedures=magic'], "'magic'"),
        (['--out=/nowhere/x.json'], '/nowhere/x.json'),
    ):
        done = start('-m', 'jointrd_jax.benchmark', *SMALL, *arguments)
        assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr
