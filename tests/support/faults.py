"""What the tests of faults share: a run that takes seconds, and reporters that disturb it.

With JOINTRD_LONG=1 in the environment every such test takes its long form (docs/reliability.md).
"""

import json
import os
from pathlib import Path

import pytest

from jointrd_jax import errors
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.system import signals
from jointrd_jax.train import loop
from tests.support.configs import QuietReporter, shipped_config

LONG = bool(os.environ.get('JOINTRD_LONG'))
SMALL = dict(
    model__stage_sizes=(1, 1), model__width=4, epochs=2, batch_size=64, eval_batch_size=512, checkpoint__every_steps=8
)
WALL_FIELDS = ('images_per_second', 'input_late')


def small_config(procedure: str = 'plain', **overrides):
    """configs/digits.py with two blocks, two epochs of 20 steps and a checkpoint every 8."""
    return shipped_config('digits', **{**SMALL, 'procedure': procedure, **overrides})


def outcome(workdir: Path) -> dict:
    """What must not depend on interruptions."""
    lines = [json.loads(line) for line in (workdir / run_directory.METRICS).read_text().splitlines()]
    summary = summary_lib.read(workdir)
    return {
        'digest': summary.student_digest,
        'top1': (summary.last_top1, summary.best_top1, summary.best_epoch, summary.teacher_top1),
        'last': run_directory.digest(run_directory.load(workdir, 'last').variables),
        'best': run_directory.digest(run_directory.load(workdir, 'best').variables),
        'correct': run_directory.read_correct(workdir).tolist(),
        'metrics': [{k: v for k, v in line.items() if k not in WALL_FIELDS} for line in lines],
    }


class Stopping(QuietReporter):
    """Asks for a stop when the run reaches one of `steps`, each once over all restarts."""

    def __init__(self, *steps: int):
        super().__init__('stopping')
        self.steps = set(steps)

    def step(self, step: int) -> None:
        if step in self.steps:
            self.steps.remove(step)
            signals.request_stop()


def run_with_stops(config, workdir: Path, *steps: int) -> tuple[dict, int]:
    """Train, stopped at every one of `steps` and started again; the summary and how often it was stopped."""
    reporter, stops = Stopping(*steps), 0
    while True:
        signals.clear()
        try:
            return loop.run(config, workdir, reporter), stops
        except errors.Interrupted:
            stops += 1
        finally:
            signals.clear()


def stop(config, workdir: Path, reporter: QuietReporter, message: str = 'stopped') -> None:
    """Train until `reporter`, or one that the run makes itself, asks for a stop."""
    with pytest.raises(errors.Interrupted, match=message):
        loop.run(config, workdir, reporter)
    signals.clear()
