"""The scripts of the paper's experiments, with their positional arguments, on real CIFAR images and shrunk networks."""

import os
import subprocess
import sys

from jointrd_jax.runs import summary as summary_lib
from tests.support.configs import QUICK_FLAGS, ROOT

sys.path.insert(0, str(ROOT / 'tests' / 'data'))
from tests.support import real_data

SHRINK = [
    '--config.epochs=1', '--config.model.stage_sizes=1,1', '--config.model.width=4', '--config.batch_size=4',
    '--config.eval_batch_size=4', '--config.mix.fraction=1',
]  # fmt: skip


def script(name, *arguments, data, out):
    """Run scripts/NAME.sh from another directory, as a user may."""
    settings = {'DATA_DIR': str(data), 'RUNS': str(out), 'XLA_FLAGS': QUICK_FLAGS, 'PYTHONPATH': str(ROOT)}
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    done = subprocess.run(
        [ROOT / 'scripts' / f'{name}.sh', *arguments, *SHRINK],
        cwd=out, env=os.environ | settings | {'PATH': path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_cifar_teacher_then_student(tmp_path):
    real_data.cifar10(tmp_path)
    script('cifar_resnet', '34', 'cifar10', '3', data=tmp_path, out=tmp_path)
    script('cifar_jointrd', '34', '0.2', 'jointrd', '3', 'cifar10', data=tmp_path, out=tmp_path)
    teacher, student = (summary_lib.read(tmp_path / 'cifar10' / name) for name in ('resnet34-3', 'jointrd34-eta0.2-3'))
    assert teacher['procedure'] == 'resnet' and student['teacher'].endswith('resnet34-3') and student['seed'] == 3
