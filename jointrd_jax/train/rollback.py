"""Losses that are not finite: how they are noticed, and going back to a checkpoint with a lower learning rate."""

import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jointrd_jax.config import TRAINS_RESNET
from jointrd_jax.errors import NotFinite
from jointrd_jax.runs import run_directory
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.system import distributed, files
from jointrd_jax.train import resume, step as step_lib
from jointrd_jax.train.job import Job
from jointrd_jax.train.resume import Position


class Diverged(Exception):
    """A loss term was not finite: {'step': which step, 'term': which term}."""

    def __init__(self, step: int, term: str):
        super().__init__(f'{term} is not finite at step {step}')
        self.fault = {'step': step, 'term': term}


def check_finite(job: Job, fault: dict[str, jax.Array]) -> None:
    """Wait for the step that reported `fault` (see `step.TrainState`).

    Raises:
      Diverged: a loss term was not finite there or before.
    """
    if int(fault['step']) >= 0:
        names = step_lib.diagnosis_order(step_lib.term_names(job.method, job.trains_teacher))
        raise Diverged(int(fault['step']), names[int(fault['term'])])


def roll_back(job: Job, checkpoints: Checkpoints, position: Position, error: Diverged) -> Position:
    """The position of the last scheduled checkpoint (or the start), with a lower learning rate.

    Everything here follows from that checkpoint and the steps after it, so a run that is killed
    and continued ends the same.

    Raises:
      NotFinite: config.nan.action is not 'rollback', or there were as many rollbacks as allowed.
    """
    checkpoints.wait()
    before = position.history.rollbacks
    if job.config.nan.action != 'rollback' or len(before) >= job.config.nan.rollbacks:
        raise give_up(job, checkpoints, error, len(before)) from None
    seconds = position.seconds()
    position = resume.begin(job, checkpoints, only_scheduled=True)
    to = position.saved_step or 0
    position.since, position.history.seconds = time.monotonic(), seconds
    position.history.rollbacks = [*before, {**error.fault, 'to': to}]
    scale = np.float32(job.config.nan.factor ** len(position.history.rollbacks))
    position.state = position.state.replace(rate_scale=step_lib.replicate(scale, job.mesh))
    job.reporter.say(f'{error}: back to step {to}, learning rate x {float(scale):g}')
    return position


def give_up(job: Job, checkpoints: Checkpoints, error: Diverged, rollbacks: int) -> NotFinite:
    """The error that ends the run; its step and term are also written to not_finite.json."""
    if distributed.is_first():
        files.write_json(job.workdir / run_directory.NOT_FINITE, error.fault)
    again = f' after {rollbacks} rollbacks' if rollbacks else ''
    if job.config.nan.action == 'skip':
        again = ', as at every step of its epoch'
    kept: Any = checkpoints.steps()
    last_good = f'the last good checkpoint, of step {kept[0]}, is kept' if kept else 'there is no checkpoint yet'
    return NotFinite(f'{error}{again}; {last_good} in {job.workdir}; {advice(job.config)}')


def advice(config: ml_collections.ConfigDict) -> str:
    """What to change after a loss that is not finite, in a few words."""
    lower = 'lower config.optimizer.learning_rate'
    if not config.optimizer.clip_norm:
        return f'{lower} or set config.optimizer.clip_norm'
    if config.procedure in TRAINS_RESNET or (config.model.reparam == 'dirac' and config.model.activation == 'prelu'):
        return lower
    return (  # clipped gradients do not explode: the network is too deep for float32
        f'{lower}, or help a deep student by config.model.reparam=dirac, config.model.activation=prelu and '
        'config.model.slope=0.95'
    )


def forget_fault(workdir: Path) -> None:
    """Remove not_finite.json, which names the loss that ended the run: it is being continued."""
    if distributed.is_first():
        files.remove(workdir / run_directory.NOT_FINITE)
