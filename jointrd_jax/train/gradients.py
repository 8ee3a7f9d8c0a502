"""Where the student's gradient comes from: through the teacher's later blocks, or through the student itself.

L = m * A + B, where A is the loss of the mixed paths and B that of the student itself (see `joint`). The two
gradients are computed apart, by two backward passes, in a program of its own, so that the training
step itself costs no more. config.log.gradients says in which epochs it runs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import PartitionSpec as P

from jointrd_jax.data import Dataset
from jointrd_jax.method import joint
from jointrd_jax.method.clipping import global_norm
from jointrd_jax.method.interface import required
from jointrd_jax.method.joint import STUDENT, TEACHER, Method, Networks, TeacherView
from jointrd_jax.train.step import AXIS, TrainState, replicated

Tree = Any
SAMPLES_PER_EPOCH = 4  # steps of a measured epoch at which the gradients are measured, spread evenly


def stages(params: dict[str, Tree]) -> dict[str, list[Tree]]:
    """Parameters by stage: 'stage1_block1' and 'stage1_block2' are of 'stage1'; 'stem' and 'head' stand alone."""
    found: dict[str, list[Tree]] = {}
    for name, tree in params.items():
        found.setdefault(name.split('_')[0], []).append(tree)
    return found


def by_origin(
    params: Tree,
    batch_stats: Tree,
    images: jax.Array,
    labels: jax.Array,
    mix: jax.typing.ArrayLike,
    **loss_arguments: Any,
) -> dict[str, Tree]:
    """{TEACHER: gradient of m * A, STUDENT: gradient of B} with respect to the student's parameters.

    L is linear in m, so B is L at m = 0 and A its slope. The other arguments are those of `joint.joint_loss`.
    """

    def parts(student: Tree) -> tuple[jax.Array, jax.Array]:
        def loss(m):
            return joint.joint_loss({**params, STUDENT: student}, batch_stats, images, labels, mix=m, **loss_arguments)[
                0
            ]

        return jax.jvp(loss, (jnp.zeros(()),), (jnp.ones(()),))

    _, pull = jax.vjp(parts, params[STUDENT])
    zero = jnp.zeros(())
    gradients = {STUDENT: pull((zero + 1, zero))[0]}
    if loss_arguments['method'].taps:
        gradients[TEACHER] = pull((zero, jnp.asarray(mix, jnp.float32)))[0]
    return gradients


def unit(gradient: Tree) -> list[jax.Array]:
    """The leaves of `gradient` divided by its norm (at least 1e-30), so that their products do not overflow."""
    norm = jnp.maximum(global_norm(gradient), 1e-30)
    return [leaf / norm for leaf in jax.tree.leaves(gradient)]


def mixture(gradients: dict[str, Tree]) -> dict[str, jax.Array]:
    """Per stage, as 'gradient/STAGE/...': the norm by origin; with two origins also the teacher's share of the
    sum of both norms, and the cosine of the angle between the two gradients."""
    found = {}
    student = stages(gradients[STUDENT])
    teacher = stages(gradients[TEACHER]) if TEACHER in gradients else {}
    for stage, own in student.items():
        norm = global_norm(own)
        found[f'gradient/{stage}/{STUDENT}'] = norm
        if teacher:
            other = global_norm(teacher[stage])
            found[f'gradient/{stage}/{TEACHER}'] = other
            found[f'gradient/{stage}/share'] = other / jnp.maximum(norm + other, 1e-30)
            found[f'gradient/{stage}/cosine'] = sum(map(jnp.vdot, unit(own), unit(teacher[stage])))
    return found


def make_measure(
    dataset: Dataset, networks: Networks, method: Method, mixing_weight: Callable, mesh: jax.sharding.Mesh
) -> Callable:
    """(state, frozen, device_arrays, seed, batch, epoch) -> `mixture` of the gradient that the step at hand takes."""

    def device_measure(
        state: TrainState, frozen: TeacherView | None, images: jax.Array, labels: jax.Array, epoch: jax.Array
    ):
        teacher = state.teacher.view if state.teacher else frozen
        if method.reads_teacher:
            view, network = required(teacher, "the teacher's variables"), required(networks.teacher, 'a teacher')
            teacher = view.with_outputs(network.apply(view.variables, images))
        gradients = by_origin(
            state.params, state.batch_stats, images, labels, mixing_weight(epoch),
            networks=networks, method=method, teacher=teacher,
        )  # fmt: skip
        return mixture(jax.lax.pmean(gradients, AXIS))

    mapped = jax.shard_map(
        device_measure, mesh=mesh, in_specs=(P(), P(), P(AXIS), P(AXIS), P()), out_specs=P(), check_vma=False
    )

    def measure(
        state: TrainState, frozen: Tree, device_arrays: Tree, seed: jax.Array, batch: Tree, epoch: jax.Array
    ) -> Tree:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        images, labels = dataset.preprocess(device_arrays, batch, key)
        return mapped(state, frozen, images, labels, epoch)

    return jax.jit(measure, out_shardings=replicated(mesh))


class Probe:
    """Measures the mixture at `SAMPLES_PER_EPOCH` steps of every config.log.gradients-th epoch, the first and the last.

    Args:
      config: the run's.
      steps_per_epoch: of the run.
      measure: (step, its arguments) -> `mixture` of its gradient.
    """

    def __init__(self, config: ml_collections.ConfigDict, steps_per_epoch: int, measure: Callable):
        self.every, self.epochs, self.steps_per_epoch = config.log.gradients, config.epochs, steps_per_epoch
        self.stride = max(steps_per_epoch // SAMPLES_PER_EPOCH, 1)
        self.measure = measure
        self.seen: list[dict[str, Any]] = []

    def is_due(self, step: int) -> bool:
        """Whether to measure before `step` is taken."""
        epoch, within = divmod(step, self.steps_per_epoch)
        in_epoch = self.every and (epoch + 1 in (1, self.epochs) or (epoch + 1) % self.every == 0)
        return bool(in_epoch) and within % self.stride == 0 and within // self.stride < SAMPLES_PER_EPOCH

    def record(self, step: int, *arguments: Any) -> None:
        """Measure before `step` is taken; `arguments` are those of the step."""
        self.seen.append(self.measure(step, *arguments))

    def take(self) -> dict[str, float]:
        """The means of the measurements since the last call (norms are means of norms); {} if there were none.

        Without the cosines of stages that one origin did not reach: the angle to a zero gradient is undefined.
        """
        seen, self.seen = jax.device_get(self.seen), []
        means = {name: float(np.mean([sample[name] for sample in seen])) for name in seen[0]} if seen else {}

        def has_angle(stage: str) -> bool:
            return all(means[f'{stage}/{origin}'] > 0 for origin in (TEACHER, STUDENT))

        return {
            n: mean for n, mean in means.items() if not n.endswith('/cosine') or has_angle(n.removesuffix('/cosine'))
        }

    def pending(self) -> list[dict[str, float]]:
        """The measurements since the last `take`, as JSON values, for the checkpoint of an epoch under way."""
        self.seen = jax.device_get(self.seen)
        return [{name: float(value) for name, value in sample.items()} for sample in self.seen]

    def resume(self, samples: list[dict[str, float]]) -> None:
        """Go on from the `pending` samples of an interrupted run."""
        self.seen = [{name: np.float32(value) for name, value in sample.items()} for sample in samples]
