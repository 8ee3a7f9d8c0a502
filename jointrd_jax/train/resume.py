"""Where a run is, how that is kept in its checkpoints, and how it is found again."""

import dataclasses
import time
from typing import Any

import jax

from jointrd_jax import config as config_lib
from jointrd_jax.errors import UserError
from jointrd_jax.method.interface import Variables
from jointrd_jax.runs import provenance, run_directory
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.system import distributed, files, runtime
from jointrd_jax.train import preflight, step as step_lib
from jointrd_jax.train.history import History
from jointrd_jax.train.job import Job
from jointrd_jax.train.step import TrainState


@dataclasses.dataclass
class Position:
    """Where a run is: all that changes while it goes.

    Attributes:
      state: what the steps change.
      best: the student's variables of the best evaluation.
      history: the results so far.
      saved_step: the step of the newest checkpoint; None: there is none.
      since: when this session began, on the monotonic clock.
    """

    state: TrainState
    best: Variables
    history: History
    saved_step: int | None
    since: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def step(self) -> int:
        """Steps taken; waits for the device."""
        return int(self.state.step)

    def seconds(self) -> float:
        """Wall time of the run, earlier sessions included."""
        return self.history.seconds + time.monotonic() - self.since


def begin(job: Job, checkpoints: Checkpoints, only_scheduled: bool = False) -> Position:
    """The newest intact checkpoint's position, or that of a fresh run; metrics.jsonl becomes what it was then.

    Args:
      only_scheduled: look only at the checkpoints that the config asks for.

    Raises:
      UserError: the checkpoints are damaged or not of this run.
    """
    newest = checkpoints.newest_intact(only_scheduled)
    checkpoints.drop_after(-1 if newest is None else newest)
    if newest is None:
        state = job.initial_state(initial_weights(job))
        position = Position(state, step_lib.copy(state.student), History(), None)
    else:
        position = restored(job, checkpoints, newest)
    job.dataset.bad.update(position.history.bad)
    if distributed.is_first():
        lines = ''.join(f'{line}\n' for line in position.history.lines)
        files.write_atomically(job.workdir / run_directory.METRICS, lines)
    return position


def initial_weights(job: Job) -> Variables | None:
    """The weights of `config.restore`, its head fresh where it is to be new, or of `model.init`; None: random ones."""
    if job.config.model.init == 'identity' and job.config.procedure not in config_lib.TRAINS_RESNET:
        fresh = job.student.initialise(jax.random.key(job.config.seed), job.dataset.image_shape)
        return {**fresh, 'params': job.student.near_identity(fresh['params'])}
    if job.teacher and job.config.model.init == 'teacher':
        return of_teacher(job)
    found = preflight.restore(job.config, job.student, job.dataset)
    if found is None:
        return None
    variables = found.variables
    if job.config.restore_head == 'new':
        fresh = job.student.initialise(jax.random.key(job.config.seed), job.dataset.image_shape)
        variables['params'] = {**variables['params'], 'head': fresh['params']['head']}
    return variables


def of_teacher(job: Job) -> Variables:
    """A fresh student with the arrays of the frozen teacher under all names that both have, where the shapes agree."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    fresh: dict[tuple, Any] = flatten_dict(
        job.student.initialise(jax.random.key(job.config.seed), job.dataset.image_shape)
    )
    there: dict[tuple, Any] = flatten_dict(job.teacher.variables) if job.teacher else {}
    shared = {path: there[path] for path, array in fresh.items() if path in there and there[path].shape == array.shape}
    return unflatten_dict({**fresh, **shared})


def restored(job: Job, checkpoints: Checkpoints, step: int) -> Position:
    """The position in a checkpoint.

    Raises:
      UserError: it is not of this run, or code, packages, devices or data changed since and that was not allowed.
    """
    history, changes = check(job, checkpoints, step)
    template = runtime.template(jax.eval_shape(job.make_state, job.seed), step_lib.replicated(job.mesh))
    items = checkpoints.restore(
        step, {'student': template.student, 'best': template.student, 'trainer': step_lib.trainer_item(template)}
    )
    history.changes += [change for change in changes if change not in history.changes]
    job.reporter.say(f'continuing from step {step} of {job.total_steps}')
    return Position(step_lib.with_items(template, items), items['best'], history, step)


def check(job: Job, checkpoints: Checkpoints, step: int) -> tuple[History, list[str]]:
    """The history in a checkpoint of this run, and the allowed changes since it was written.

    Raises:
      UserError: see `restored`.
    """
    meta: Any = checkpoints.meta(step)
    taught_by = meta.get('teacher') or {}
    if not provenance.is_one(meta.get('provenance')) or not all(
        isinstance(part, dict) for part in (meta.get('config'), taught_by)
    ):
        raise UserError(
            f'{checkpoints.directory} was not written by a training run of this version, so it cannot be continued'
        )
    preflight.same_config(job.config, meta['config'], job.workdir)  # also where config.json was deleted
    history = History.from_json(meta.get('history'), checkpoints.directory / str(step))
    changes = provenance.check(job.config, meta['provenance'], job.provenance, job.workdir)
    if job.teacher and taught_by.get('digest') != job.teacher.digest:
        raise UserError(
            f'{job.workdir} was trained with the teacher {taught_by.get("origin")} whose weights differ from '
            f'those of {job.teacher.origin}; give the earlier teacher again as config.teacher.path or use another '
            '--workdir'
        )
    return history, changes


def save(job: Job, checkpoints: Checkpoints, step: int, position: Position, gradient_samples: list) -> None:
    """Write a checkpoint in the background.

    Args:
      step: that of `position`, known without waiting for the device.
      gradient_samples: measured in the epoch under way (see `gradients.Probe`).

    Raises:
      UserError: this or the previous checkpoint cannot be written.
    """
    history = dataclasses.replace(
        position.history,
        seconds=position.seconds(),
        gradient_samples=gradient_samples,
        bad=job.dataset.bad_anywhere(),
    )
    meta = {
        'data': job.dataset.description.to_json(),
        'config': config_lib.flatten(job.config),
        'history': dataclasses.asdict(history),
        'provenance': job.provenance,
    }
    if job.teacher:
        meta['teacher'] = {'origin': job.teacher.origin, 'digest': job.teacher.digest}
    state = position.state
    items = {'student': state.student, 'best': position.best, 'trainer': step_lib.trainer_item(state)}
    with job.reporter.waiting('waiting for the previous checkpoint to be on disk'):
        checkpoints.save(step, items, meta)
    position.saved_step = step
