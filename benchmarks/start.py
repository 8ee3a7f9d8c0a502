"""Seconds from the start of a process to its first training step: python benchmarks/start.py [--rounds=3]

The README's main command (digits, 34 layers), as a process of its own each time: `cold` with an empty
compilation cache, `warm` with the one that cold has left. What comes before the first step: importing,
data, initial weights, tracing and compiling the step.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

ROUNDS = flags.DEFINE_integer('rounds', 3, 'Cold starts, each followed by two warm ones.', lower_bound=1)
ROOT = Path(__file__).parents[1]

# The command itself, but for a reporter that ends the process after its first step.
PROGRAM = """
import os, sys
from jointrd_jax import cli
from jointrd_jax.train import progress
progress.Reporter.step = lambda self, step: os._exit(0)
cli.run('train', ['--config=configs/digits.py', '--workdir=' + sys.argv[1]])
"""


def seconds(cache: str) -> float:
    """One start, to the end of the first step."""
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, '-c', PROGRAM, f'{workdir}/run'], cwd=ROOT, check=True,
            env={**os.environ, 'JOINTRD_CACHE_DIR': cache}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - began


def main(_) -> None:
    cold, warm = [], []
    for _ in range(ROUNDS.value):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds(cache))
            warm += [seconds(cache) for _ in range(2)]
    for name, times in (('cold', cold), ('warm', warm)):
        spread = f'{min(times):.1f} to {max(times):.1f}'
        print(f'{name}: {statistics.median(times):.1f} s to the first step (median of {len(times)}, {spread})')


if __name__ == '__main__':
    app.run(main)
