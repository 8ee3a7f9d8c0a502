"""The training run: from a config and a directory to a trained network, resumable at any point."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jointrd_jax import config as config_lib
from jointrd_jax.data.base import Batch, as_config
from jointrd_jax.errors import Interrupted, NotFinite, UserError
from jointrd_jax.method import joint
from jointrd_jax.method.joint import Method, Networks
from jointrd_jax.method.networks import Variables
from jointrd_jax.runs import from_config, provenance, run_directory
from jointrd_jax.runs.checkpoint import Checkpoints
from jointrd_jax.system import buckets, distributed, files, runtime, signals
from jointrd_jax.train import (
    gradients,
    preflight,
    setup as plan_lib,
    step as step_lib,
    teacher as teacher_lib,
    trackers,
)
from jointrd_jax.train.evaluation import evaluate
from jointrd_jax.train.history import History
from jointrd_jax.train.progress import Reporter
from jointrd_jax.train.setup import Plan
from jointrd_jax.train.step import AXIS, TrainState, shard_batches
from jointrd_jax.train.teacher import Teacher

LAST_CHECKPOINT = 'waiting for the last checkpoint to be on disk'
WATCH_STEPS = 50  # how far behind the device the host looks at losses


class Diverged(Exception):
    """A loss term was not finite: {'step': which step, 'term': which term}."""

    def __init__(self, step: int, term: str):
        super().__init__(f'{term} is not finite at step {step}')
        self.fault = {'step': step, 'term': term}


def run(config: ml_collections.ConfigDict, workdir: str | Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train what `config` says in `workdir` and return the summary; continue what is already there.

    Raises:
      UserError: anything wrong with the config, data, teacher or checkpoints. Nothing is made before config and
        data are known to be good.
      NotFinite: a loss that is not finite, a UserError too.
      Interrupted: a signal asked for a stop; the run is checkpointed and the same call continues it.
    """
    workdir = files.absolute(workdir)
    with buckets.answering(workdir, '; the same command continues'):
        plan = plan_lib.make(config, workdir)
        reporter = reporter or Reporter(config.procedure, quiet=config.log.quiet)
        try:
            with distributed.only_first(files.locked(workdir)):
                preflight.workdir(config, workdir)  # again, now that nobody else can write there
                if distributed.is_first():
                    files.write_json(workdir / run_directory.CONFIG, config_lib.flatten(config))
                summary = run_directory.read_summary(workdir)
                distributed.sync('workdir read')
                is_new = summary is None
                if is_new:
                    summary = Trainer(config, workdir, plan, reporter).train()
                else:
                    forget_fault(workdir)
                    reporter.say(f'{workdir} is finished already')
        finally:
            plan.dataset.close()
    if is_new or not reporter.nested:
        report(summary, reporter)
    return summary


def forget_fault(workdir: Path) -> None:
    """A run that goes on did not end by the loss that its not_finite.json names."""
    if distributed.is_first():
        files.remove(workdir / run_directory.NOT_FINITE)


def report(summary: dict[str, Any], reporter: Reporter) -> None:
    """The final table of a run."""
    keys = ('procedure', 'dataset', 'model', 'shortcuts', 'seed', 'epochs', 'last_top1', 'best_top1', 'teacher_top1')
    rows = [(key, '-' if summary.get(key) is None else str(summary.get(key))) for key in keys]
    if summary.get('skipped_images'):
        rows.append(('bad images skipped', str(summary['skipped_images'])))
    rows.append(('wall time', f'{summary["wall_seconds"]:.1f} s'))
    reporter.table('finished', rows, (reporter.label, 'accuracies in percent'))


class Trainer:
    """One run: builds everything, resumes, steps, evaluates, checkpoints and writes the results."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        plan: Plan,
        reporter: Reporter,
    ):
        dataset, student, method, _ = plan
        self.config, self.workdir, self.dataset, self.method, self.reporter = config, workdir, dataset, method, reporter
        self.started = time.monotonic()
        self.mesh = step_lib.make_mesh()
        self.steps_per_epoch = dataset.train_size // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.device_arrays = step_lib.replicate(dataset.device_arrays, self.mesh)
        self.trains_teacher = config.procedure == 'jointrd_scratch'
        self.teacher = self.find_teacher(plan) if config.procedure in config_lib.NEEDS_TEACHER else None
        if self.trains_teacher:
            teacher_network = from_config.resnet(config, len(dataset.classes), AXIS)
        else:
            teacher_network = self.teacher.network if self.teacher else None
        self.networks = step_lib.networks_for(student, teacher_network, method)
        self.frozen = None
        if self.teacher:
            margin = step_lib.margin(self.teacher.network, self.teacher.variables) if method.distill_weight else None
            self.frozen = step_lib.replicate({'variables': self.teacher.variables, 'margin': margin}, self.mesh)
        self.provenance = provenance.provenance(dataset)
        self.mix = np.asarray(
            jax.jit(self.mixing_weight)(np.arange(config.epochs))
        )  # once: the loop waits for no device
        self.schedule = from_config.learning_rate(config, self.steps_per_epoch)
        self.optimizer = from_config.optimizer(config, self.schedule)
        hybrids = method.taps if config.eval_hybrids else ()
        self.eval_step = reporter.first_call(
            'compiling the evaluation', step_lib.make_eval_step(dataset, self.networks, hybrids)
        )
        self.train_steps: dict[tuple[Method, int], Callable] = {}  # see `train_step`
        measure = gradients.make_measure(dataset, self.networks, method, self.mixing_weight, config.seed, self.mesh)
        self.probe = gradients.Probe(
            config, self.steps_per_epoch, reporter.first_call('compiling the measurement of gradients', measure)
        )

    def mixing_weight(self, epoch: jax.typing.ArrayLike) -> jax.Array:
        mix = self.config.mix
        return joint.mixing_weight(epoch, mix.eta, config_lib.in_epochs(mix.epochs, self.config.epochs))

    def method_at(self, step: int) -> Method:
        """The loss at `step`: where the mixed paths have no weight, they are not run."""
        mixes = not self.method.taps or self.mix[step // self.steps_per_epoch] > 0
        return self.method if mixes else self.method.without_mixing()

    def train_step(self, method: Method, steps: int) -> Callable:
        """The program that takes so many steps on the loss `method`, compiled when it is first called."""
        if (method, steps) not in self.train_steps:
            device_step = step_lib.make_device_step(
                self.networks, method, self.optimizer, self.steps_per_epoch, self.mixing_weight, self.method.num_paths
            )
            step = step_lib.make_train_step(self.dataset, device_step, self.config.seed, self.mesh, steps)
            what = 'compiling the training step' + (f', {steps} at once' if steps > 1 else '')
            self.train_steps[method, steps] = self.reporter.first_call(what, step)
        return self.train_steps[method, steps]

    def find_teacher(self, plan: Plan) -> Teacher:
        """The frozen teacher, trained first if no run is named, and evaluated here."""
        teacher = plan.teacher
        if teacher is None:
            path = self.workdir / 'teacher'
            if run_directory.read_summary(path) is None:
                self.reporter.say(f'training the teacher first, in {path}')
                run(teacher_lib.recipe(self.config), path, self.reporter.child('teacher'))
            teacher = teacher_lib.load(self.config, path, self.dataset, plan.student, self.method)
        eval_step = step_lib.make_eval_step(self.dataset, Networks(teacher.network), ())  # as its own run compiled it
        with self.reporter.waiting('evaluating the teacher'):
            accuracies = self.evaluate(eval_step, teacher.variables)
        if accuracies is None:
            raise Interrupted(f'stopped before the first step; the same command continues in {self.workdir}')
        top1 = accuracies['top1']
        teacher_lib.check_record(teacher, top1, self.config.teacher.which, self.dataset)
        self.reporter.say(f'teacher {teacher.origin}: top-1 {top1:.2f} %')
        return teacher._replace(top1=top1)

    def evaluate(
        self, eval_step: Callable, student: Variables, teacher: Variables | None = None
    ) -> dict[str, float] | None:
        return evaluate(eval_step, self.dataset, self.device_arrays, self.mesh, student, teacher)

    # State, and how it is kept.

    def initial_state(self, student: Variables | None = None) -> TrainState:
        return step_lib.initial_state(
            jax.random.key(self.config.seed), self.networks, self.method, self.dataset.image_shape,
            self.optimizer, self.trains_teacher, student,
        )  # fmt: skip

    def restored(self) -> Variables:
        """The weights of `config.restore`; with a fresh head where it is to be new."""
        variables = run_directory.load(self.config.restore).variables
        if self.config.restore_head == 'new':
            fresh = self.networks.student.initialise(jax.random.key(self.config.seed), self.dataset.image_shape)
            variables['params'] = {**variables['params'], 'head': fresh['params']['head']}
        return variables

    def begin(self, checkpoints: Checkpoints, only_scheduled: bool = False) -> None:
        """Fresh state, or the newest intact checkpoint's, and the metrics as they were then."""
        newest = checkpoints.newest_intact(only_scheduled)
        checkpoints.drop_after(-1 if newest is None else newest)
        if newest is None:
            self.history = History()
            student = self.restored() if self.config.restore else None
            make = runtime.jit_once(self.initial_state, out_shardings=step_lib.replicated(self.mesh))
            with self.reporter.waiting('initialising'):
                self.state = make(student)
            self.best = step_lib.copy(self.state.student)
        else:
            self.resume(checkpoints, newest)
        self.saved_step = newest
        self.dataset.bad.update(self.history.bad)
        self.probe.resume(self.history.gradient_samples)
        if distributed.is_first():
            files.write_atomically(
                self.workdir / run_directory.METRICS, ''.join(f'{line}\n' for line in self.history.lines)
            )

    def resume(self, checkpoints: Checkpoints, step: int) -> None:
        """State, best weights and history of a checkpoint, if they are of this run."""
        meta = checkpoints.meta(step)
        taught_by = meta.get('teacher', {})
        if not provenance.is_one(meta.get('provenance')) or not all(
            isinstance(p, dict) for p in (meta.get('config'), taught_by)
        ):
            raise UserError(
                f'{checkpoints.directory} was not written by a training run of this version: none can continue from it'
            )
        preflight.same_config(self.config, meta['config'], self.workdir)  # also where config.json was deleted
        history = History.from_json(meta.get('history'), checkpoints.directory / str(step))
        changes = provenance.check(self.config, meta['provenance'], self.provenance, self.workdir)
        if self.teacher and taught_by.get('digest') != self.teacher.digest:
            raise UserError(
                f'{self.workdir} was trained with the teacher {taught_by.get("origin")} whose weights differ from '
                f'those of {self.teacher.origin}; give back the former as config.teacher.path or use another --workdir'
            )
        everywhere = step_lib.replicated(self.mesh)
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            jax.eval_shape(self.initial_state),
        )
        items = checkpoints.restore(
            step, {'student': placed.student, 'best': placed.student, 'trainer': step_lib.trainer_item(placed)}
        )
        self.state = step_lib.with_items(placed, items)
        self.best, self.history = items['best'], history
        self.history.changes += [change for change in changes if change not in self.history.changes]
        self.reporter.say(f'continuing from step {step} of {self.total_steps}')

    def save(self, checkpoints: Checkpoints, step: int) -> None:
        history = dataclasses.replace(
            self.history, seconds=self.seconds(), gradient_samples=self.probe.pending(), bad=self.dataset.bad_anywhere()
        )
        meta = {
            'data': as_config(self.dataset),
            'config': config_lib.flatten(self.config),
            'history': dataclasses.asdict(history),
            'provenance': self.provenance,
        }
        if self.teacher:
            meta['teacher'] = {'origin': self.teacher.origin, 'digest': self.teacher.digest}
        items = {'student': self.state.student, 'best': self.best, 'trainer': step_lib.trainer_item(self.state)}
        with self.reporter.waiting('waiting for the previous checkpoint to be on disk'):
            checkpoints.save(step, items, meta)
        self.saved_step = step

    def seconds(self) -> float:
        """Wall time of the run, earlier sessions included."""
        return self.history.seconds + time.monotonic() - self.started

    # The loop.

    def train(self) -> dict[str, Any]:
        """Step to the end and return the summary."""
        checkpoints = Checkpoints(self.workdir, self.config.checkpoint.keep, self.is_scheduled)
        checkpoints.say = self.reporter.say
        try:
            self.begin(checkpoints)
            forget_fault(self.workdir)
            self.trackers = trackers.Trackers(self.config, self.workdir, int(self.state.step), self.reporter.say)
            with contextlib.closing(self.trackers), contextlib.ExitStack() as self.until_written:
                while True:
                    try:
                        self.advance(checkpoints)
                        break
                    except Diverged as error:
                        self.roll_back(checkpoints, error)
                with self.reporter.waiting(LAST_CHECKPOINT):
                    checkpoints.wait()
                summary = self.finish()
                self.trackers.finish(summary)
        finally:
            with self.reporter.waiting(LAST_CHECKPOINT):
                checkpoints.close()
        return summary

    def show_samples(self, batch: Batch) -> None:
        """Augmented images of a batch to the trackers, as the coming step sees them."""
        if trackers.wanted(self.config):  # computed on every host, written by the first
            preprocess = jax.jit(self.dataset.preprocess, out_shardings=step_lib.replicated(self.mesh))
            key = jax.random.fold_in(jax.random.key(self.config.seed), self.state.step)
            self.trackers.samples(
                0, self.dataset, *preprocess(self.device_arrays, shard_batches([batch], self.mesh), key)
            )

    def show_terms(self, watched: dict[str, Any] | None) -> None:
        """Loss terms of an epoch under way, from a step that the device has left behind."""
        if watched:
            steps = (watched['step'] - 1) % self.steps_per_epoch + 1
            self.reporter.terms(lambda: {name: float(total) / steps for name, total in watched['epoch_sums'].items()})

    def is_scheduled(self, step: int) -> bool:
        """Whether the config asks for a checkpoint at `step`."""
        return step % (self.config.checkpoint.every_steps or self.steps_per_epoch) == 0 or step == self.total_steps

    def advance(self, checkpoints: Checkpoints) -> None:
        """From the state as it is to the last step.

        Raises:
          Diverged: a loss term was not finite.
          Interrupted: a stop was asked for; there is a checkpoint of the step reached.
        """
        first = step = int(self.state.step)
        batches = self.dataset.train_batches(step)
        watched, clock = None, (step, time.monotonic())
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                self.reporter.live(self.total_steps, step, self.steps_per_epoch, self.config.batch_size)
            )
            if self.end_epoch(step) and self.is_scheduled(step):  # the run was stopped in this evaluation
                self.save(checkpoints, step)
            while step < self.total_steps and not self.stop_asked(step):
                group = [next(batches) for _ in range(self.steps_at_once(step))]
                if step == 0 and not self.history.rollbacks:
                    self.show_samples(group[0])
                if self.probe.is_due(step):
                    batch = shard_batches(group[:1], self.mesh)
                    self.probe.record(step, self.state, self.frozen, self.device_arrays, batch)
                train_step = self.train_step(self.method_at(step), len(group))
                self.state, seen = train_step(
                    self.state, self.frozen, self.device_arrays, shard_batches(group, self.mesh)
                )
                if step == first:  # compiled: from here on there is something to lose
                    self.until_written.enter_context(signals.work_at_stake())
                step += len(group)
                self.reporter.step(step)
                if step % WATCH_STEPS == 0:
                    self.check_finite(watched and watched['fault'])
                    self.show_terms(watched)
                    watched = {**seen, 'step': step}
                if step % self.steps_per_epoch == 0:
                    self.check_finite(seen['fault'])
                    rate = (step - clock[0]) * self.config.batch_size / (time.monotonic() - clock[1])
                    self.history.images_per_second = round(rate, 1)
                    self.end_epoch(step)
                    clock = step, time.monotonic()
                if self.is_scheduled(step):
                    self.check_finite(seen['fault'])
                    self.save(checkpoints, step)
            if self.stop_asked(step) and not self.is_complete(step):
                self.check_finite(self.state.fault)
                if step and step != self.saved_step:
                    self.save(checkpoints, step)
                checkpoints.wait()
                raise Interrupted(
                    f'stopped at step {step} of {self.total_steps} by {signals.requested() or "another host"}; '
                    f'the same command continues in {self.workdir}'
                )

    def steps_at_once(self, step: int) -> int:
        """How many steps the next call takes: config.steps_per_dispatch where nothing is to be done between them.

        It follows from `step` and the config, so that an interrupted run takes its steps in the same groups.
        """
        count = self.config.steps_per_dispatch

        def halts(after: int) -> bool:
            ends = after % WATCH_STEPS == 0 or after % self.steps_per_epoch == 0 or self.is_scheduled(after)
            return ends or self.probe.is_due(after)

        return 1 if any(halts(step + i) for i in range(1, count)) else count

    def stop_asked(self, step: int) -> bool:
        """Whether to stop here: a signal came. Several hosts ask each other, at steps all of them reach."""
        asked = signals.requested() is not None
        if jax.process_count() == 1:
            return asked
        if step % WATCH_STEPS and step != self.total_steps:
            return False
        from jax.experimental import multihost_utils

        return bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))

    def check_finite(self, fault: dict[str, jax.Array] | None) -> None:
        """Raises Diverged for a loss term that was not finite."""
        if fault is not None and int(fault['step']) >= 0:
            names = step_lib.diagnosis_order(step_lib.term_names(self.method, self.trains_teacher))
            raise Diverged(int(fault['step']), names[int(fault['term'])])

    def roll_back(self, checkpoints: Checkpoints, error: Diverged) -> None:
        """Go back to the last scheduled checkpoint (or the start) and go on with a lower learning rate.

        Everything here follows from that checkpoint and the steps after it, so a run that is killed
        and continued takes the same way.

        Raises:
          NotFinite: config.on_nan is 'stop', or there were as many rollbacks as allowed.
        """
        before = self.history.rollbacks
        if self.config.on_nan == 'stop' or len(before) >= self.config.nan_rollbacks:
            again = f' after {len(before)} rollbacks' if before else ''
            checkpoints.wait()
            kept = checkpoints.steps()
            if distributed.is_first():
                files.write_json(self.workdir / run_directory.NOT_FINITE, error.fault)
            raise NotFinite(
                f'{error}{again}; '
                + (
                    f'the last good checkpoint, of step {kept[0]}, is kept in '
                    if kept
                    else 'there is no checkpoint yet in '
                )
                + f'{self.workdir}; lower config.optimizer.learning_rate or set config.optimizer.clip_norm'
            ) from None
        checkpoints.wait()
        seconds = self.seconds()
        self.begin(checkpoints, only_scheduled=True)
        to = self.saved_step or 0
        self.started, self.history.seconds = time.monotonic(), seconds
        self.history.rollbacks = [*before, {**error.fault, 'to': to}]
        scale = np.float32(self.config.nan_factor ** len(self.history.rollbacks))
        self.state = self.state.replace(rate_scale=step_lib.replicate(scale, self.mesh))
        self.reporter.say(f'{error}: back to step {to}, learning rate x {float(scale):g}')

    def end_epoch(self, step: int) -> bool:
        """At the end of an epoch: evaluate if that is due, keep the best, and write the epoch's line, once.

        Left undone (False) if a stop is asked for meanwhile; the run does it first when it is continued.
        """
        epoch, since = divmod(step, self.steps_per_epoch)
        if not step or since or self.history.at_end_of(step):
            return False
        accuracies = {}
        if epoch % self.config.eval_every == 0 or step == self.total_steps:
            learned = self.state.learned_teacher
            frozen = self.frozen['variables'] if self.frozen and self.config.eval_hybrids else None
            with self.reporter.waiting('evaluating'):
                accuracies = self.evaluate(self.eval_step, self.state.student, learned or frozen)
            if accuracies is None:
                return False
            if accuracies['top1'] > self.history.best_top1:
                self.best = step_lib.copy(self.state.student)
                self.history.best_top1, self.history.best_epoch = accuracies['top1'], epoch
        rate = float(self.schedule(step - 1)) * float(self.state.rate_scale)
        line = {'epoch': epoch, 'step': step, 'learning_rate': rate}
        if self.method.taps:
            line['mix'] = float(self.mix[epoch - 1])
        names = step_lib.term_names(self.method_at(step - 1), self.trains_teacher)
        line |= {name: float(self.state.epoch_sums[name]) / self.steps_per_epoch for name in names}
        line = self.history.add_epoch(line | self.probe.take(), accuracies)
        if distributed.is_first():
            files.append_line(self.workdir / run_directory.METRICS, self.history.lines[-1])
        self.reporter.epoch(line, self.config.epochs)
        self.trackers.epoch(line, self.state.student)
        return True

    def is_complete(self, step: int) -> bool:
        return step == self.total_steps and self.history.at_end_of(step)

    def finish(self) -> dict[str, Any]:
        """Write and return the summary."""
        config, last = self.config, self.history.last
        network = self.networks.student
        teacher_top1 = self.teacher.top1 if self.teacher else last.get('teacher_top1')
        shortcuts = network.shortcuts if isinstance(network.shortcuts, str) else ','.join(network.shortcuts)
        summary = {
            'procedure': config.procedure,
            'dataset': self.dataset.name,
            'eval_images': [self.dataset.name, self.dataset.eval_size],
            'model': f'{"resnet" if shortcuts == "all" else "plain"}{network.depth}',
            'depth': network.depth,
            'stage_sizes': list(network.stage_sizes),
            'width': network.width,
            'shortcuts': shortcuts,
            'dirac': bool(network.dirac),
            'taps': list(self.method.taps),
            'skipped_images': len(self.dataset.bad_anywhere()),
            'seed': config.seed,
            'epochs': config.epochs,
            'steps': self.total_steps,
            'best_top1': self.history.best_top1,
            'best_epoch': self.history.best_epoch,
            'last_top1': last['top1'],
            'last_top5': last['top5'],
            'teacher_top1': teacher_top1,
            'teacher': self.teacher.origin if self.teacher else None,
            'wall_seconds': round(self.seconds(), 2),
            'images_per_second': last['images_per_second'],
            'rollbacks': self.history.rollbacks,
            'changes_on_resume': self.history.changes,
            'student_digest': run_directory.digest(jax.device_get(self.state.student)),
            'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
            'versions': provenance.versions(),
        }
        if distributed.is_first():
            files.write_json(self.workdir / run_directory.SUMMARY, summary)
        distributed.sync('summary written')
        return summary
