"""The programs of a recipe, as shapes placed on a mesh; nothing is computed, so its devices need not be here."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from jointrd_jax.config import NEEDS_TEACHER
from jointrd_jax.data.base import Dataset
from jointrd_jax.data.streaming import Streaming
from jointrd_jax.method.interface import required
from jointrd_jax.method.joint import Method, TeacherView
from jointrd_jax.system import runtime
from jointrd_jax.train import assembly, preflight, step as step_lib, teacher as teacher_lib
from jointrd_jax.train.step import AXIS

TRAINING, EVALUATION = 'training step', 'evaluation'


class Program(NamedTuple):
    """A step that a recipe takes: what it is called with, and how often.

    Attributes:
      name: 'training step', 'evaluation'; of the teacher's own run with 'teacher: ' before it.
      arguments: shapes with their shardings; the first is the state that a training step changes.
      images: in one call, over all chips.
      calls: in the whole recipe.
    """

    name: str
    function: Callable
    arguments: tuple
    images: int
    calls: int

    @property
    def trains(self) -> bool:
        return TRAINING in self.name

    @property
    def state_arrays(self) -> int:
        return len(jax.tree.leaves(self.arguments[0])) if self.trains else 0


def batch_of(dataset: Dataset, size: int, evaluates: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `size` images."""
    if isinstance(dataset, Streaming):
        chunks = dataset.eval_chunks() if evaluates else dataset.train_chunks()
        batch = {name: array for name, array in chunks.make(0).items() if name != 'bad'}
    else:
        batch = next(iter(dataset.eval_batches() if evaluates else dataset.train_batches(0)))
    return {name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype) for name, array in batch.items()}


def of_run(config: ml_collections.ConfigDict, dataset: Dataset, mesh: jax.sharding.Mesh) -> list[Program]:
    """The training steps and the evaluation of one run, without those of a teacher that is trained before it.

    Raises:
      UserError: batches that do not divide over the mesh, or taps that the network does not have.
    """
    preflight.batches(config, dataset, mesh.size)
    made = assembly.of(config, dataset)
    method = made.method
    everywhere, rows = step_lib.replicated(mesh), NamedSharding(mesh, P(AXIS))

    def view() -> TeacherView:
        network = required(made.networks.teacher, 'a teacher')
        variables = network.init(jax.random.key(0), np.zeros((1, *dataset.image_shape), np.float32))
        return step_lib.frozen_view(network, variables, method)

    state = runtime.template(jax.eval_shape(made.make_state, 0), everywhere)
    is_frozen = made.networks.teacher and not made.trains_teacher
    frozen = runtime.template(jax.eval_shape(view), everywhere) if is_frozen else None
    arrays = runtime.template(dataset.device_arrays, everywhere)
    seed = runtime.template(np.int32(config.seed), everywhere)

    def train(name: str, method: Method, epochs: int) -> Program:
        batch = runtime.template(batch_of(dataset, config.batch_size, False), rows)
        arguments = (state, frozen, arrays, seed, batch)
        calls = epochs * made.steps_per_epoch
        return Program(name, made.make_train_step(method, mesh), arguments, config.batch_size, calls)

    mixed = int(np.count_nonzero(np.asarray(made.mixing_weight(np.arange(config.epochs))) > 0)) if method.taps else 0
    programs = []
    if mixed:
        programs.append(train(TRAINING, method, mixed))
    if mixed < config.epochs:
        name = f'{TRAINING} without mixed paths' if mixed else TRAINING
        programs.append(train(name, method.without_mixing(), config.epochs - mixed))
    evaluations = len({*range(config.eval_every, config.epochs + 1, config.eval_every), config.epochs})
    batch = runtime.template(batch_of(dataset, config.eval_batch_size, True), rows)
    beside = state.learned_teacher or (frozen.variables if frozen and config.eval_hybrids else None)
    calls = evaluations * -(-dataset.eval_size // config.eval_batch_size)
    arguments = (state.student, beside, arrays, batch)
    programs.append(Program(EVALUATION, made.make_eval_step(), arguments, config.eval_batch_size, calls))
    return programs


def of_recipe(config: ml_collections.ConfigDict, dataset: Dataset, mesh: jax.sharding.Mesh) -> list[Program]:
    """All programs of `config`, those of a teacher that it trains first at the end.

    Raises:
      UserError: see `of_run`.
    """
    programs = of_run(config, dataset, mesh)
    if config.procedure in NEEDS_TEACHER and not config.teacher.path:
        own = of_run(teacher_lib.recipe(config), dataset, mesh)
        programs += [program._replace(name=f'teacher: {program.name}') for program in own]
    return programs
