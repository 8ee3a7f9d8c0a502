"""What stays the same while a run goes: its data, networks, schedules and compiled steps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from jointrd_jax.errors import Interrupted
from jointrd_jax.method import joint
from jointrd_jax.method.interface import Variables
from jointrd_jax.method.joint import Method, Networks, TeacherView
from jointrd_jax.runs import from_config, provenance
from jointrd_jax.system import runtime
from jointrd_jax.train import gradients, step as step_lib, teacher as teacher_lib
from jointrd_jax.train.evaluation import Evaluation, evaluate
from jointrd_jax.train.progress import Reporter
from jointrd_jax.train.setup import Plan
from jointrd_jax.train.step import AXIS, TrainState
from jointrd_jax.train.teacher import Teacher

TAPS = 2  # the stream of random numbers that taps are drawn from


class Job:
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
      student: the network that is trained, as `networks` has it.
      mixing_weights: m(t) by epoch.
      schedule: step -> learning rate.
      tap_sets: those of the mixed paths, of which each step takes one.
      slope: step -> that of annealed activations; None where there are none.

    Raises:
      UserError: the teacher's accuracy is not the one that its run recorded, or too low to be of use.
      Interrupted: a signal asked for a stop while the teacher was evaluated.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, plan: Plan, reporter: Reporter):
        self.config, self.workdir, self.reporter = config, workdir, reporter
        self.dataset, self.method = plan.dataset, plan.method
        mixes = bool(self.method.taps)
        self.tap_sets = from_config.tap_sets(config, plan.student) if mixes else (self.method.taps,)
        self.steps_per_epoch = self.dataset.train_size // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.mesh = step_lib.make_mesh()
        self.device_arrays = step_lib.replicate(self.dataset.device_arrays, self.mesh)
        self.seed = step_lib.replicate(np.int32(config.seed), self.mesh)
        self.teacher = self.evaluated(plan.teacher) if plan.teacher else None
        self.frozen = self.view_of(self.teacher) if self.teacher else None
        self.trains_teacher = config.procedure == 'jointrd_scratch'
        if self.trains_teacher:
            teacher_network = from_config.resnet(config, len(self.dataset.classes), AXIS)
        else:
            teacher_network = self.teacher.network if self.teacher else None
        self.student = plan.student
        self.networks = step_lib.networks_for(plan.student, teacher_network, self.method)
        self.provenance = provenance.provenance(self.dataset)
        # Computed here for all epochs, so that the loop waits for no device.
        self.mixing_weights = np.asarray(jax.jit(self.mixing_weight)(np.arange(config.epochs)))
        self.schedule = from_config.learning_rate(config, plan.student, self.steps_per_epoch)
        self.optimizer = from_config.optimizer(config, self.schedule)
        self.slope = from_config.annealed_slope(config, plan.student, self.steps_per_epoch)
        hybrids = self.method.taps if config.eval_hybrids else ()
        self.eval_step = reporter.first_call(
            'compiling the evaluation', step_lib.make_eval_step(self.dataset, self.networks, hybrids)
        )
        self.measure_gradients = reporter.first_call(
            'compiling the measurement of gradients',
            gradients.make_measure(self.dataset, self.networks, self.method, self.mixing_weight, self.mesh),
        )
        self._train_steps: dict[tuple[Method, int], Callable] = {}

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

    def view_of(self, teacher: Teacher) -> TeacherView:
        margin = step_lib.margin(teacher.network, teacher.variables) if self.method.distill_weight else None
        return step_lib.replicate(TeacherView(teacher.variables, margin), self.mesh)

    def mixing_weight(self, epoch: jax.typing.ArrayLike) -> jax.Array:
        """m(t), the weight of the mixed paths at `epoch`."""
        mix = self.config.mix
        return joint.mixing_weight(epoch, mix.eta, mix.fraction * self.config.epochs)

    def method_at(self, step: int) -> Method:
        """The loss at `step`, on the taps drawn for it: where the mixed paths have no weight, they are not run."""
        mixes = not self.method.taps or self.mixing_weights[step // self.steps_per_epoch] > 0
        if not mixes:
            return self.method.without_mixing()
        if len(self.tap_sets) == 1:
            return self.method
        drawn = np.random.default_rng((self.config.seed, TAPS, step)).integers(len(self.tap_sets))
        return dataclasses.replace(self.method, taps=self.tap_sets[drawn])

    def train_step(self, step: int, count: int) -> Callable:
        """The program that takes `count` steps from `step` on; compiled when it is first called."""
        method = self.method_at(step)
        if (method, count) not in self._train_steps:
            device_step = step_lib.make_device_step(
                self.networks,
                method,
                self.optimizer,
                self.steps_per_epoch,
                self.mixing_weight,
                self.slope,
                self.config.ema.decay,
            )
            program = step_lib.make_train_step(self.dataset, device_step, self.mesh, count)
            what = 'compiling the training step' + (f', {count} at once' if count > 1 else '')
            self._train_steps[method, count] = self.reporter.first_call(what, program)
        return self._train_steps[method, count]

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

    def make_state(self, seed: jax.typing.ArrayLike, student: Variables | None = None) -> TrainState:
        """`initial_state`, traceable."""
        return step_lib.initial_state(
            jax.random.key(seed), self.networks, self.method, self.dataset.image_shape,
            self.optimizer, self.trains_teacher, student, averages=self.config.ema.decay > 0,
        )  # fmt: skip

    def term_names(self, step: int) -> tuple[str, ...]:
        """The terms that `step` reports."""
        return step_lib.term_names(self.method_at(step), self.trains_teacher)

    def is_scheduled(self, step: int) -> bool:
        """Whether the config asks for a checkpoint at `step`."""
        return step % (self.config.checkpoint.every_steps or self.steps_per_epoch) == 0 or step == self.total_steps
