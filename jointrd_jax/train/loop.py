"""The training run: from a config and a directory to a trained network, resumable at any point."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from jointrd_jax import config as config_lib
from jointrd_jax.data.base import Batch
from jointrd_jax.errors import Interrupted
from jointrd_jax.runs import run_directory, summary as summary_lib
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.runs.summary import Summary
from jointrd_jax.system import buckets, distributed, files, signals
from jointrd_jax.train import (
    gradients,
    preflight,
    result,
    resume,
    setup,
    step as step_lib,
    teacher as teacher_lib,
    trackers as trackers_lib,
)
from jointrd_jax.train.feed import Feed, InFlight
from jointrd_jax.train.history import SKIPPED_STEPS
from jointrd_jax.train.job import Job
from jointrd_jax.train.progress import Reporter
from jointrd_jax.train.resume import Position
from jointrd_jax.train.rollback import Diverged, check_finite, forget_fault, roll_back
from jointrd_jax.train.setup import Plan
from jointrd_jax.train.step import shard_batches
from jointrd_jax.train.trackers import Trackers

LAST_CHECKPOINT = 'waiting for the last checkpoint to be on disk'
WATCH_STEPS = 50  # how far behind the device the host looks at losses


def run(config: ml_collections.ConfigDict, workdir: str | Path, reporter: Reporter | None = None) -> Summary:
    """Train what `config` says in `workdir` and return the summary; continue what is already there.

    Raises:
      UserError: anything wrong with the config, data, teacher or checkpoints. Nothing is written before config and
        data are checked.
      NotFinite: a loss that is not finite, a UserError too.
      Interrupted: a signal asked for a stop; the run is checkpointed and the same call continues it.
    """
    workdir = files.absolute(workdir)
    with buckets.answering(workdir, '; the same command continues'):
        return run_in(config, workdir, reporter or Reporter(config.procedure, quiet=config.log.quiet))


def run_in(config: ml_collections.ConfigDict, workdir: Path, reporter: Reporter) -> Summary:
    """`run`, but for the errors of a bucket that does not answer, which `run` turns into one line."""
    plan = setup.make(config, workdir)
    try:
        with distributed.only_first(files.locked(workdir)):
            preflight.workdir(config, workdir)  # again, now that nobody else can write there
            summary = summary_lib.read(workdir)
            if summary:
                preflight.same_images(summary, plan.dataset, workdir)
            with distributed.only_first(run_directory.removed_if_refused(workdir)):
                if distributed.is_first():
                    files.write_json(workdir / run_directory.CONFIG, config_lib.flatten(config))
                distributed.sync('workdir read')
                is_new = summary is None
                if is_new:
                    summary = train(config, workdir, plan, reporter)
                else:
                    forget_fault(workdir)
                    reporter.say(f'{workdir} is finished already')
    finally:
        plan.dataset.close()
    if is_new or not reporter.nested:
        result.show(summary, reporter)
    return summary


def train(config: ml_collections.ConfigDict, workdir: Path, plan: Plan, reporter: Reporter) -> Summary:
    """Train a run that passed all checks, or continue it, and return its summary; see `run`."""
    since = time.monotonic()
    if plan.lacks_teacher:
        plan = plan._replace(teacher=trained_teacher(config, workdir, plan, reporter))
    job = Job(config, workdir, plan, reporter)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, job.is_scheduled, reporter.say)
    try:
        position = resume.begin(job, checkpoints)
        position.since = since
        forget_fault(workdir)
        trackers = Trackers(config, workdir, position.step, reporter.say)
        with contextlib.closing(trackers):
            summary = Trainer(job, checkpoints, position, trackers).train()
            trackers.finish(summary)
    finally:
        with reporter.waiting(LAST_CHECKPOINT):
            checkpoints.close()
    return summary


def trained_teacher(
    config: ml_collections.ConfigDict, workdir: Path, plan: Plan, reporter: Reporter
) -> teacher_lib.Teacher:
    """The teacher in WORKDIR/teacher, trained there first unless that is finished."""
    path = workdir / 'teacher'
    if summary_lib.read(path) is None:
        reporter.say(f'training the teacher first, in {path}')
        run(teacher_lib.recipe(config), path, reporter.child('teacher'))
    return teacher_lib.load(config, path, plan.dataset, plan.student, plan.method)


class Group(NamedTuple):
    """The batches of one call of the device: how many steps, the first as it is on the host, all on the devices."""

    steps: int
    first: Batch
    on_devices: dict[str, jax.Array]


class Trainer:
    """The loop of a run: takes steps, watches the losses, evaluates at the ends of epochs, writes checkpoints.

    Args:
      job: what stays the same.
      checkpoints: the run's.
      position: where the run begins or continues; what changes.
      trackers: the run's.
    """

    def __init__(self, job: Job, checkpoints: Checkpoints, position: Position, trackers: Trackers):
        self.job, self.checkpoints, self.position, self.trackers = job, checkpoints, position, trackers
        self.probe = gradients.Probe(job.config, job.steps_per_epoch, job.measure_gradients)
        self.late_share = 0.0  # of the last epoch's calls, those that waited for input
        self.work_at_stake = contextlib.ExitStack()  # from the first step until the last checkpoint is on disk

    def train(self) -> Summary:
        """Step to the end, over as many rollbacks as are allowed; write and return the summary.

        Raises:
          NotFinite: a loss was not finite and there is no rollback left.
          Interrupted: a stop was asked for; there is a checkpoint of the step reached.
        """
        with self.work_at_stake:
            while not self.is_complete(self.position.step):
                try:
                    self.take_steps()
                except Diverged as error:
                    self.position = roll_back(self.job, self.checkpoints, self.position, error)
            with self.job.reporter.waiting(LAST_CHECKPOINT):
                self.checkpoints.wait()
            return result.write(self.job, self.position)

    def take_steps(self) -> None:
        """Take the steps from the position to the last.

        Raises:
          Diverged: a loss term was not finite.
          Interrupted: as `train`.
        """
        job, reporter = self.job, self.job.reporter
        first = step = self.position.step
        watched, in_flight = None, InFlight()
        self.probe.resume(self.position.history.gradient_samples)
        with (
            reporter.live(job.total_steps, step, job.steps_per_epoch, job.config.batch_size),
            contextlib.closing(Feed(self.groups(step))) as feed,
        ):
            if self.end_epoch(step) and job.is_scheduled(step):  # the run was stopped in this evaluation
                self.save(step)
            clock = step, time.monotonic()
            while step < job.total_steps:
                group = feed.take(distributed.alone_and_stopping)
                if group is None or distributed.stop_asked():
                    break
                self.before_step(step, group)
                report = self.dispatch(step, group)
                in_flight.add(report['fault'])
                if step == first:  # compiled: from here on there is something to lose
                    self.work_at_stake.enter_context(signals.work_at_stake())
                step += group.steps
                reporter.step(step)
                if step % WATCH_STEPS == 0:
                    self.watch(watched)
                    watched = {**report, 'step': step}
                if step % job.steps_per_epoch == 0:
                    check_finite(job, report['fault'])
                    rate = (step - clock[0]) * job.config.batch_size / (time.monotonic() - clock[1])
                    self.position.history.images_per_second = round(rate, 1)
                    self.late_share = round(feed.late / feed.taken, 4)
                    feed.late = feed.taken = 0
                    self.end_epoch(step)
                    clock = step, time.monotonic()
                if job.is_scheduled(step):
                    check_finite(job, report['fault'])
                    self.save(step)
            if not self.is_complete(step):  # a stop was asked for here, or in the last evaluation
                self.stop(step)

    def groups(self, step: int) -> Iterator[Group]:
        """The batches of every call from `step` on, on the devices."""
        job = self.job
        with contextlib.closing(job.dataset.train_batches(step)) as batches:
            while step < job.total_steps:
                group = [next(batches) for _ in range(self.steps_at_once(step))]
                yield Group(len(group), group[0], shard_batches(group, job.mesh))
                step += len(group)

    def dispatch(self, step: int, group: Group) -> dict[str, Any]:
        """Dispatch the steps of a group of batches; returns what `step.make_train_step` reports of them."""
        job, position = self.job, self.position
        train_step = job.train_step(step, group.steps)
        position.state, report = train_step(position.state, job.frozen, job.device_arrays, job.seed, group.on_devices)
        return report

    def before_step(self, step: int, group: Group) -> None:
        """Show augmented images before the first step of a run, and measure gradients where that is due."""
        if step == 0 and not self.position.history.rollbacks:
            self.show_samples(group.first)
        if self.probe.is_due(step):
            job = self.job
            sharded = shard_batches([group.first], job.mesh)
            self.probe.record(step, self.position.state, job.frozen, job.device_arrays, job.seed, sharded)

    def show_samples(self, batch: Batch) -> None:
        """Give the trackers the augmented images of a batch, as the coming step takes them."""
        job = self.job
        if trackers_lib.wanted(job.config):  # computed on every host, written by the first
            preprocess = jax.jit(job.dataset.preprocess, out_shardings=step_lib.replicated(job.mesh))
            key = jax.random.fold_in(jax.random.key(job.config.seed), self.position.state.step)
            images, labels = preprocess(job.device_arrays, shard_batches([batch], job.mesh), key)
            self.trackers.samples(0, job.dataset, images, labels)

    def watch(self, report: dict[str, Any] | None) -> None:
        """Check and show the loss terms of an epoch under way, by the report of a step some time ago.

        Raises:
          Diverged: one was not finite.
        """
        if report:
            check_finite(self.job, report['fault'])
            steps = (report['step'] - 1) % self.job.steps_per_epoch + 1
            self.job.reporter.terms(lambda: step_lib.means(report['epoch_sums'], report['skipped'], steps))

    def steps_at_once(self, step: int) -> int:
        """How many steps the next call takes: config.steps_per_dispatch where nothing is to be done between them.

        It follows from `step` and the config, so that an interrupted run takes its steps in the same groups.
        """
        job, count = self.job, self.job.config.steps_per_dispatch

        def halts(after: int) -> bool:
            ends = after % WATCH_STEPS == 0 or after % job.steps_per_epoch == 0 or job.is_scheduled(after)
            return ends or self.probe.is_due(after)

        return 1 if any(halts(step + i) for i in range(1, count)) else count

    def stop(self, step: int) -> None:
        """Write a checkpoint of `step` and raise Interrupted."""
        job = self.job
        check_finite(job, self.position.state.fault)
        if step and step != self.position.saved_step:
            self.save(step)
        self.checkpoints.wait()
        raise Interrupted(
            f'stopped at step {step} of {job.total_steps} by {signals.requested() or "another host"}; '
            f'the same command continues in {job.workdir}'
        )

    def save(self, step: int) -> None:
        resume.save(self.job, self.checkpoints, step, self.position, self.probe.pending())

    def is_complete(self, step: int) -> bool:
        return step == self.job.total_steps and self.position.history.at_end_of(step)

    def end_epoch(self, step: int) -> bool:
        """At the end of an epoch: evaluate if that is due, keep the best, and write the epoch's line, once.

        Return whether this was done now. It is not if a stop is asked for meanwhile; the run then does it first when it
        is continued.
        """
        job, position, history = self.job, self.position, self.position.history
        epoch, since = divmod(step, job.steps_per_epoch)
        if not step or since or history.at_end_of(step):
            return False
        accuracies = {}
        if epoch % job.config.eval_every == 0 or step == job.total_steps:
            found = job.evaluate(position.state)
            if found is None:
                return False
            accuracies = found.accuracies
            if distributed.is_first():
                run_directory.write_correct(job.workdir, found.correct)
            if accuracies['top1'] > history.best_top1 or self.settled(epoch) > self.settled(history.best_epoch):
                position.best = step_lib.copy(position.state.student)
                history.best_top1, history.best_epoch = accuracies['top1'], epoch
        line = history.add_epoch(self.epoch_line(epoch, step), accuracies)
        if distributed.is_first():
            files.append_line(job.workdir / run_directory.METRICS, history.lines[-1])
        job.reporter.epoch(line, job.config.epochs)
        self.trackers.epoch(line, position.state.student)
        return True

    def settled(self, epoch: int) -> bool:
        """Whether slopes and shortcuts that a schedule takes to 0 were there at the end of `epoch`.

        An evaluation before that is of another network than the one deployed: the best only while none is later.
        """
        job = self.job
        values = job.annealed(epoch * job.steps_per_epoch - 1) if job.annealed else {}
        return not any(map(float, values.values()))

    def epoch_line(self, epoch: int, step: int) -> dict[str, Any]:
        """What metrics.jsonl says of the epoch that ends with `step`, but for its accuracies."""
        job, state = self.job, self.position.state
        rate = float(job.schedule(step - 1)) * float(state.rate_scale)
        line = {'epoch': epoch, 'step': step, 'learning_rate': rate}
        if job.method.taps:
            line['mix'] = float(job.mixing_weights[epoch - 1])
        means = step_lib.means(state.epoch_sums, state.skipped, job.steps_per_epoch)
        line |= {name: means[name] for name in job.term_names(step - 1)}
        if state.skipped is not None:
            line[SKIPPED_STEPS] = int(state.skipped)
        return line | self.probe.take() | {'input_late': self.late_share}
