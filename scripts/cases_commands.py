"""Machines, accounts and command lines that cannot work, for scripts/cases.py: each is a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

TRAIN = 'train --config digits --workdir RUN'
WANDB = f'{TRAIN} --config.log.tracker=wandb'

# What is typed: variables of the environment, then what comes after `jointrd`.
COMMANDS = (
    f'JAX_PLATFORMS=cuda {TRAIN}',
    f'JAX_PLATFORMS=tpuu {TRAIN}',
    f'JAX_PLATFORMS=CPU {TRAIN}',
    f'JAX_PLATFORM_NAME=gpu {TRAIN}',
    'JAX_PLATFORMS=cuda convert w.pth --out OUT',
    f'{TRAIN} --coordinator=localhost --num_processes=1 --process_id=0',
    f'{TRAIN} --coordinator=localhost:abc --num_processes=1 --process_id=0',
    f'{TRAIN} --coordinator=http://localhost:1234 --num_processes=1 --process_id=0',
    f'{TRAIN} --coordinator=localhost:1234 --num_processes=2 --process_id=2',
    'train --config digits --workdir hf://bucket/run',
    'convert w.pth --out hf://bucket/t.safetensors',
    'export --workdir RUN --format safetensors --out hf://bucket/e',
    'report RUN --out hf://bucket/r.html',
    'prepare cifar10 --data_dir hf://bucket/data',
    'evaluate hf://bucket/run',
    'predict hf://bucket/run picture.png',
    f'WANDB_MODE=sometimes {WANDB}',
    f'{TRAIN} --config.batch-size=8',
    f'{TRAIN} --batch_size=8',
    f'{TRAIN} --config.batch_size=eight',
    f'{TRAIN} --config.batchsize=8',
    f'{TRAIN} --config.optimizer.learning_rte=0.1',
    f'{TRAIN} --config.procedure=jointrb',
    f'{TRAIN} --workdirr=elsewhere',
    f'{TRAIN} RUN2',
    'train --config digit --workdir RUN',
    'train --config digits',
    'trian --config digits',
    f'{TRAIN} --config.teacher.path=nowhere.pth.tar',
    f'{TRAIN} --config.restore=nowhere.pth',
    f'{TRAIN} --config.dataset.name=cifar10 --config.dataset.data_dir=NOWHERE',
    'report NOWHERE --out r.html',
    'export --workdir RUN --format tensorrt --out OUT',
)


def command_answer(command: str, directory: Path) -> str:
    """The line that ends a command which is run in an empty directory, and what it left there."""
    words = command.split()
    variables = dict(word.split('=', 1) for word in words if '=' in word and word[0].isupper())
    arguments = words[len(variables) :]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'WANDB_'))}
    here = {'PYTHONPATH': str(Path(__file__).parents[1]), 'HOME': str(directory)}
    done = subprocess.run(
        [sys.executable, '-m', 'jointrd_jax', *arguments],
        cwd=directory, capture_output=True, text=True, env={**kept, **here, **variables},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.strip()]
    left = sorted(path.name for path in directory.iterdir())
    return f'status {done.returncode}: {" // ".join(said[-2:])}' + (f'; left: {", ".join(left)}' if left else '')
