"""What stays the same while a run goes: its assembly, its data on the devices and its compiled steps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from jointrd_jax.errors import Interrupted
from jointrd_jax.method.interface import Variables
from jointrd_jax.method.joint import Method, Networks
from jointrd_jax.runs import from_config, provenance
from jointrd_jax.system import runtime
from jointrd_jax.train import gradients, step as step_lib, teacher as teacher_lib
from jointrd_jax.train.assembly import Assembly
from jointrd_jax.train.evaluation import Evaluation, evaluate
from jointrd_jax.train.progress import Reporter
from jointrd_jax.train.setup import Plan
from jointrd_jax.train.step import TrainState
from jointrd_jax.train.teacher import Teacher

TAPS = 2  # the stream of random numbers that taps are drawn from


class Job(Assembly):
    """A run as its loop needs it; nothing here changes after `__init__`, apart from which steps are compiled.

    Args:
      config: the run's.
      workdir: the run's.
      plan: the run that passed all checks, with its frozen teacher if it has one.
      reporter: shows the user what is waited for.

    Attributes:
      mesh: all devices of all hosts.
      device_arrays: the dataset's, on every device.
      teacher: the frozen one, evaluated; None if there is none.
      frozen: the teacher as the steps take it; None if there is none.
      mixing_weights: m(t) by epoch.
      tap_sets: those of the mixed paths, of which each step takes one.

    Raises:
      UserError: the teacher's accuracy is not the one that its run recorded, or too low to be of use.
      Interrupted: a signal asked for a stop while the teacher was evaluated.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, plan: Plan, reporter: Reporter):
        frozen = plan.teacher.network if plan.teacher else None
        super().__init__(config, plan.dataset, plan.student, plan.method, frozen)
        self.workdir, self.reporter = workdir, reporter
        mixes = bool(self.method.taps)
        self.tap_sets = from_config.tap_sets(config, self.student) if mixes else (self.method.taps,)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.mesh = step_lib.make_mesh()
        self.device_arrays = step_lib.replicate(self.dataset.device_arrays, self.mesh)
        self.seed = step_lib.replicate(np.int32(config.seed), self.mesh)
        self.teacher = self.evaluated(plan.teacher) if plan.teacher else None
        self.frozen = None
        if self.teacher:
            view = step_lib.frozen_view(self.teacher.network, self.teacher.variables, self.method)
            self.frozen = step_lib.replicate(view, self.mesh)
        self.provenance = provenance.provenance(self.dataset)
        # Computed here for all epochs, so that the loop waits for no device.
        self.mixing_weights = np.asarray(jax.jit(self.mixing_weight)(np.arange(config.epochs)))
        self.eval_step = reporter.first_call('compiling the evaluation', self.make_eval_step())
        self._train_steps: dict[tuple[Method, int], Callable] = {}
        self._measurements: dict[Method, Callable] = {}

    def evaluated(self, teacher: Teacher) -> Teacher:
        """The teacher with its accuracy on this run's images.

        Raises:
          UserError: it is not the recorded one, or too low to be of use (see `teacher.check_useful`).
          Interrupted: a signal asked for a stop meanwhile.
        """
        # The same program as the teacher's own run compiled.
        eval_step = step_lib.make_eval_step(self.dataset, Networks(teacher.network), ())
        with self.reporter.waiting('evaluating the teacher'):
            found = evaluate(eval_step, self.dataset, self.device_arrays, self.mesh, teacher.variables)
        if found is None:
            raise Interrupted(f'stopped before the first step; the same command continues in {self.workdir}')
        top1 = found.accuracies['top1']
        teacher_lib.check_record(teacher, top1, self.config.teacher.which, self.dataset)
        teacher_lib.check_useful(teacher, top1, self.config.teacher.least_top1, self.dataset)
        self.reporter.say(f'teacher {teacher.origin}: top-1 {top1:.2f} %')
        return teacher._replace(top1=top1)

    def method_at(self, step: int) -> Method:
        """The loss at `step`, on the taps drawn for it: where the mixed paths have no weight, they are not run."""
        mixes = not self.method.taps or self.mixing_weights[step // self.steps_per_epoch] > 0
        return self.with_taps(step) if mixes else self.method.without_mixing()

    def with_taps(self, step: int) -> Method:
        """The loss on the taps drawn for `step`, whatever the weight of the mixed paths."""
        if len(self.tap_sets) == 1:
            return self.method
        drawn = np.random.default_rng((self.config.seed, TAPS, step)).integers(len(self.tap_sets))
        return dataclasses.replace(self.method, taps=self.tap_sets[drawn])

    def train_step(self, step: int, count: int) -> Callable:
        """The program that takes `count` steps from `step` on; compiled when it is first called."""
        method = self.method_at(step)
        if (method, count) not in self._train_steps:
            program = self.make_train_step(method, self.mesh, count)
            what = 'compiling the training step' + (f', {count} at once' if count > 1 else '')
            self._train_steps[method, count] = self.reporter.first_call(what, program)
        return self._train_steps[method, count]

    def measure_gradients(self, step: int, *arguments: Any) -> dict[str, jax.Array]:
        """`gradients.mixture` of the gradient that `step` takes; `arguments` are those of the step."""
        method = self.with_taps(step)
        if method not in self._measurements:
            measure = gradients.make_measure(self.dataset, self.networks, method, self.mixing_weight, self.mesh)
            self._measurements[method] = self.reporter.first_call('compiling the measurement of gradients', measure)
        return self._measurements[method](*arguments, step // self.steps_per_epoch)

    def evaluate(self, state: TrainState) -> Evaluation | None:
        """Accuracies of the student, of a teacher that is trained too and, if the config asks, of the mixed paths.

        None if a stop was asked for meanwhile.
        """
        frozen = self.frozen.variables if self.frozen and self.config.eval_hybrids else None
        teacher = state.learned_teacher or frozen
        with self.reporter.waiting('evaluating'):
            return evaluate(self.eval_step, self.dataset, self.device_arrays, self.mesh, state.student, teacher)

    def initial_state(self, student: Variables | None = None) -> TrainState:
        """A fresh state on all devices; `student` gives other initial weights than random ones."""
        make = runtime.jit_once(self.make_state, out_shardings=step_lib.replicated(self.mesh))
        with self.reporter.waiting('initialising'):
            return make(self.seed, student)

    def term_names(self, step: int) -> tuple[str, ...]:
        """The terms that `step` reports."""
        return step_lib.term_names(self.method_at(step), self.trains_teacher)

    def is_scheduled(self, step: int) -> bool:
        """Whether the config asks for a checkpoint at `step`."""
        return step % (self.config.checkpoint.every_steps or self.steps_per_epoch) == 0 or step == self.total_steps
