"""The training step and the evaluation step: what runs on the devices.

The training step is a per-device function over a named axis with `pmean`, mapped over the devices by
`jax.shard_map` in one place. This is the pmapped step in its current form: jax.pmap's own docstring
points there. It is the same on one device, on several, and on several hosts.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

from jointrd_jax.method import joint, layers, losses
from jointrd_jax.method.clipping import global_norm
from jointrd_jax.method.interface import Outputs, StagedNetwork, Variables, required
from jointrd_jax.method.joint import STUDENT, Method, Networks, TeacherView
from jointrd_jax.method.networks import Connectors, Network

if TYPE_CHECKING:  # the step itself needs nothing beyond jax, flax and optax (see `benchmark`)
    from jointrd_jax.data import Dataset

AXIS = 'data'
TEACHER_LOSS = joint.term_name(joint.CE, joint.TEACHER)  # what a teacher that trains too is trained on
GRADIENT_NORM = 'gradient_norm'
Tree = Any


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes.

    Attributes:
      step: steps taken.
      params: trained parameters, {'student': ..., 'connectors': ...}.
      batch_stats: running statistics, with the same keys.
      opt_state: of the optimiser over `params`.
      average: {'params', 'batch_stats'} of the student averaged over the steps (config.ema.decay), else None.
      skipped: steps of the epoch that were not taken, where such steps are skipped (config.nan.action), else None.
      teacher: the teacher while it trains too, else None; a frozen one is an argument of the step, a `TeacherView`.
      epoch_sums: each loss term summed over the steps of the epoch that were taken.
      rate_scale: factor on the learning rate, below 1 after a rollback from a loss that was not finite.
      fault: {'step', 'term'}: the first step whose loss was not finite, and the number of the term in
        `diagnosis_order(epoch_sums)`; -1: none.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    teacher: 'LearningTeacher | None'
    epoch_sums: dict[str, jax.Array]
    rate_scale: jax.Array
    fault: dict[str, jax.Array]
    average: Variables | None = None
    skipped: jax.Array | None = None

    @property
    def student(self) -> Variables:
        """What is evaluated, kept and deployed."""
        return self.average or {'params': self.params[STUDENT], 'batch_stats': self.batch_stats[STUDENT]}

    @property
    def learned_teacher(self) -> Variables | None:
        return self.teacher.view.variables if self.teacher else None


class LearningTeacher(flax.struct.PyTreeNode):
    """A teacher that is trained beside the student. The margin of its view is that of its first weights."""

    view: TeacherView
    opt_state: Tree


def make_mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """`devices`, by default all of all hosts, in one row; they may be of a machine that is not here (see `plan`)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def replicate(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """A host tree (the same on every host) as arrays replicated over all devices.

    Through jit, since arrays that `device_put` makes global from local ones cannot be saved by Orbax.
    """
    return jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)


def shard_batches(batches: Sequence[dict[str, np.ndarray]], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """A host's shares of a step's batch, or of several steps' stacked, as arrays sharded over all devices."""
    if len(batches) == 1:
        (stacked,), sharding = batches, NamedSharding(mesh, P(AXIS))
    else:
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        sharding = NamedSharding(mesh, P(None, AXIS))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in stacked.items()}


def margin(network: StagedNetwork, variables: Variables) -> jax.Array:
    """The margin of D, from the last BatchNorm of the teacher's last block."""
    if not isinstance(network, Network):
        raise TypeError(f'the margin is read from the last BatchNorm of a `Network`, not from {type(network).__name__}')
    block = variables['params'][network.block_names[-1]]
    norm = block['bn3' if network.bottleneck else 'bn2']
    return losses.margins(norm['scale'], norm['bias'])


def frozen_view(network: StagedNetwork, variables: Variables, method: Method) -> TeacherView:
    """What the steps of `method` are given of a frozen teacher: the margin too if features are distilled. Traceable."""
    return TeacherView(variables, margin(network, variables) if method.distill_weight else None)


def term_names(method: Method, trains_teacher: bool) -> tuple[str, ...]:
    """The terms a step reports, in a fixed order."""
    return (*joint.term_names(method), *([TEACHER_LOSS] if trains_teacher else []), GRADIENT_NORM)


def zero_sums(names: tuple[str, ...]) -> dict[str, jax.Array]:
    return {name: jnp.zeros((), jnp.float32) for name in names}


def initial_state(
    key: jax.Array,
    networks: Networks,
    method: Method,
    image_shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
    trains_teacher: bool,
    student: Variables | None = None,
    averages: bool = False,
    skips: bool = False,
) -> TrainState:
    """A fresh state; `student` gives other initial weights than random ones. Traceable.

    Args:
      averages: whether the student's weights are averaged over the steps.
    """
    student_key, connector_key, teacher_key = jax.random.split(key, 3)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = {STUDENT: student or networks.student.init(student_key, images)}
    if method.distill_weight:
        features = jax.eval_shape(networks.student.apply, variables[STUDENT], images).features
        maps = {path: jnp.zeros(features.shape) for path in joint.path_names(method.taps)}
        variables['connectors'] = required(networks.connectors, 'connectors').init(connector_key, maps, train=False)
    params = {name: tree['params'] for name, tree in variables.items()}
    teacher = None
    if trains_teacher:
        network = required(networks.teacher, 'a teacher')
        fresh = network.init(teacher_key, images)
        view = TeacherView(fresh, margin(network, fresh))
        teacher = LearningTeacher(view, optimizer.init(fresh['params']))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={name: tree['batch_stats'] for name, tree in variables.items()},
        opt_state=optimizer.init(params),
        average=copy(variables[STUDENT]) if averages else None,
        teacher=teacher,
        epoch_sums=zero_sums(term_names(method, trains_teacher)),
        rate_scale=jnp.ones((), jnp.float32),
        fault={'step': jnp.full((), -1, jnp.int32), 'term': jnp.full((), -1, jnp.int32)},
        skipped=jnp.zeros((), jnp.int32) if skips else None,
    )


def scaled(updates: Tree, factor: jax.Array) -> Tree:
    """The updates at `factor` times the learning rate (momentum is kept before the rate, so it is as it was)."""
    return jax.tree.map(lambda update: update * factor, updates)


def update_teacher(
    teacher: LearningTeacher,
    network: StagedNetwork,
    optimizer: optax.GradientTransformation,
    smoothing: float,
    images: jax.Array,
    labels: jax.Array,
    rate_scale: jax.Array,
) -> tuple[LearningTeacher, Outputs, jax.Array]:
    """One step of the teacher on CE(R(x), y) with batch statistics ("from scratch").

    Returns:
      The teacher after the step; its outputs and its loss before it (nan where the gradient is not finite).
    """

    view, before = teacher.view, teacher.view.variables['params']

    def loss_fn(params):
        variables = {**view.variables, 'params': params}
        outputs, updates = network.apply(variables, images, train=True, mutable=['batch_stats'])
        return losses.cross_entropy(outputs.logits, labels, smoothing), (outputs, updates['batch_stats'])

    (loss, (outputs, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(before)
    grads, batch_stats, loss = jax.lax.pmean((grads, batch_stats, loss), AXIS)
    loss = jnp.where(jnp.isfinite(global_norm(grads)), loss, jnp.nan)
    updates, opt_state = optimizer.update(grads, teacher.opt_state, before)
    params = optax.apply_updates(before, scaled(updates, rate_scale))
    view = view._replace(variables={'params': params, 'batch_stats': batch_stats})
    return LearningTeacher(view, opt_state), outputs, loss


@jax.jit
def copy(tree: Variables) -> Variables:
    """A tree with buffers of its own, which survive the donation of the original's."""
    return jax.tree.map(jnp.copy, tree)


def in_student(path: tuple, state: TrainState) -> list[str] | None:
    """Where in `state.student` a leaf of the state is; None if it is not in there."""
    group, *rest = (getattr(key, 'name', getattr(key, 'key', '')) for key in path)
    if state.average:
        return rest if group == 'average' else None
    return [group, *rest[1:]] if group in ('params', 'batch_stats') and rest[0] == STUDENT else None


def trainer_item(state: TrainState) -> dict[str, jax.Array]:
    """All of a state but the student's variables, flat: {path: array}."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if in_student(path, state) is None}


def with_items(template: TrainState, items: dict[str, Any]) -> TrainState:
    """The state whose student is items['student'] and whose rest is items['trainer'] (see `trainer_item`)."""

    def leaf(path, _):
        place = in_student(path, template)
        if place is None:
            return items['trainer'][jax.tree_util.keystr(path)]
        node = items['student']
        for key in place:
            node = node[key]
        return node

    return jax.tree_util.tree_map_with_path(leaf, template)


def averaged(average: Variables, student: Variables, step: jax.Array, decay: float) -> Variables:
    """The exponential moving average after one more step; over the first steps it is shorter.

    The numbers that a schedule sets are copied, not averaged.
    """
    keep = jnp.minimum(decay, (1 + step) / (10 + step))

    def leaf(path: tuple, old: jax.Array, new: jax.Array) -> jax.Array:
        is_scheduled = path[0].key == 'batch_stats' and layers.is_annealed(path)
        return new if is_scheduled else keep * old + (1 - keep) * new

    return jax.tree_util.tree_map_with_path(leaf, average, student)


def make_device_step(
    networks: Networks,
    method: Method,
    optimizer: optax.GradientTransformation,
    steps_per_epoch: int,
    mixing_weight: Callable[[jax.Array], jax.Array],
    annealed: Callable[[jax.Array], dict[str, jax.Array]] | None = None,
    ema_decay: float = 0.0,
) -> Callable:
    """(state, frozen teacher or None, images, labels) -> state: one step on one device's share of the batch.

    `mixing_weight` takes the epoch; `annealed` takes the step and gives the numbers of the student that a schedule
    sets (see `layers.annealed`).
    `ema_decay` is that of the student's average, where the state has one. The sums of the terms start anew each epoch.
    """

    def device_step(state: TrainState, frozen: TeacherView | None, images: jax.Array, labels: jax.Array) -> TrainState:
        terms, teacher = {}, frozen
        if annealed:
            student_stats = layers.annealed(state.batch_stats[STUDENT], annealed(state.step))
            state = state.replace(batch_stats={**state.batch_stats, STUDENT: student_stats})
        before = state
        if state.teacher:
            network = required(networks.teacher, 'a teacher')
            learned, outputs, terms[TEACHER_LOSS] = update_teacher(
                state.teacher, network, optimizer, method.label_smoothing, images, labels, state.rate_scale
            )
            state, teacher = state.replace(teacher=learned), learned.view.with_outputs(outputs)
        elif method.reads_teacher:
            view = required(frozen, "the teacher's variables")
            teacher = view.with_outputs(required(networks.teacher, 'a teacher').apply(view.variables, images))

        def loss_fn(params):
            return joint.joint_loss(
                params, state.batch_stats, images, labels,
                networks=networks, method=method, teacher=teacher, mix=mixing_weight(state.step // steps_per_epoch),
            )  # fmt: skip

        (_, (student_terms, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grads, batch_stats, student_terms = jax.lax.pmean((grads, batch_stats, student_terms), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        same_epoch = (state.step % steps_per_epoch != 0).astype(jnp.float32)
        terms |= {**student_terms, GRADIENT_NORM: global_norm(grads)}
        params: Tree = optax.apply_updates(state.params, scaled(updates, state.rate_scale))
        student = {'params': params[STUDENT], 'batch_stats': batch_stats[STUDENT]}
        after = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            average=averaged(state.average, student, state.step, ema_decay) if state.average else None,
            opt_state=opt_state,
            epoch_sums={name: same_epoch * total + terms.get(name, 0) for name, total in state.epoch_sums.items()},
            fault=first_fault(state, terms),
        )
        return taken_if_finite(before, after, terms, steps_per_epoch)

    return device_step


def taken_if_finite(
    before: TrainState, after: TrainState, terms: dict[str, jax.Array], steps_per_epoch: int
) -> TrainState:
    """`after`; or, where steps are skipped and one of `terms` is not finite, `before`.

    A skipped step is counted, and the schedules go on. The fault of an epoch that had no step but such ones stays in
    the state, and ends the run. Sums of finite terms stay finite.
    """
    if before.skipped is None:
        return after
    finite = jnp.stack([jnp.isfinite(term) for term in terms.values()]).all()
    same_epoch = before.step % steps_per_epoch != 0
    skipped = same_epoch * before.skipped + (1 - finite.astype(jnp.int32))
    kept = before.replace(
        epoch_sums={name: same_epoch * total for name, total in before.epoch_sums.items()},
        fault=jax.tree.map(partial(jnp.where, skipped == steps_per_epoch), after.fault, before.fault),
    )

    def leaf(path: tuple, new: jax.Array, old: jax.Array) -> jax.Array:
        advances = getattr(path[-1], 'name', '') in ('step', 'count')  # the run's, and that of optax's schedules
        return new if advances else jnp.where(finite, new, old)

    after = after.replace(epoch_sums=jax.tree.map(jnp.nan_to_num, after.epoch_sums))
    return jax.tree_util.tree_map_with_path(leaf, after, kept).replace(skipped=skipped)


def means(epoch_sums: dict[str, jax.Array], skipped: jax.Array | None, steps: int) -> dict[str, float]:
    """The mean of each loss term over the steps that were taken, of an epoch's first `steps`; see `TrainState`."""
    taken = steps - (0 if skipped is None else int(skipped))
    return {name: float(total) / max(taken, 1) for name, total in epoch_sums.items()}


def diagnosis_order(names: Iterable[str]) -> list[str]:
    """Terms in the order in which they are checked for being finite: causes before what they add up to.

    The same for every container of the names: inside jit a dict's keys are sorted.
    """
    return sorted(names, key=lambda name: ((joint.LOSS, GRADIENT_NORM).index(name) if '/' not in name else -1, name))


def first_fault(state: TrainState, terms: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`state.fault`, or this step with its first term that is not finite; computed on the device."""
    bad = jnp.stack([~jnp.isfinite(terms.get(name, 0.0)) for name in diagnosis_order(state.epoch_sums)])
    is_first = bad.any() & (state.fault['step'] < 0)
    return {
        'step': jnp.where(is_first, state.step, state.fault['step']),
        'term': jnp.where(is_first, jnp.argmax(bad).astype(jnp.int32), state.fault['term']),
    }


def make_train_step(dataset: 'Dataset', device_step: Callable, mesh: jax.sharding.Mesh, steps: int = 1) -> Callable:
    """(state, frozen, device_arrays, seed, batch) -> (state, report), jitted and mapped over `mesh`.

    The state is donated; the report, a copy of its 'epoch_sums', 'skipped' and 'fault', stays readable, so that the
    host can look at it steps later without holding up the device.
    What is random is drawn for the whole batch from (seed, step), so it does not depend on the devices; the seed is
    an argument, so that runs of several seeds share one compiled program.
    With `steps` > 1 one call takes so many steps, on as many batches stacked ([steps, B, ...], see `shard_batches`).
    """
    mapped = jax.shard_map(
        device_step,
        mesh=mesh,
        in_specs=(P(), P(), P(AXIS), P(AXIS)),
        out_specs=P(),
        check_vma=False,  # gradients are per device until the explicit pmean
    )

    def train_step(
        state: TrainState, frozen: Tree, device_arrays: Tree, seed: jax.Array, batch: Tree
    ) -> tuple[TrainState, Tree]:
        def one(state: TrainState, batch: Tree) -> tuple[TrainState, None]:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            images, labels = dataset.preprocess(device_arrays, batch, key)
            return mapped(state, frozen, images, labels), None

        state, _ = one(state, batch) if steps == 1 else jax.lax.scan(one, state, batch)
        return state, {name: getattr(state, name) for name in ('epoch_sums', 'skipped', 'fault')}

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh))


def make_eval_step(dataset: 'Dataset', networks: Networks, taps: tuple[int, ...]) -> Callable:
    """(student, teacher, device_arrays, batch) -> {network: counts [top-1, top-5]}, and which the student got right.

    The latter [B] is 1 for a right answer, 0 for a wrong one, -1 where the batch is masked. 'teacher' is evaluated if
    its variables are given; with `taps` every hybrid path as well.
    """

    def counts(logits, labels, mask):
        hit = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == labels[:, None]
        return jnp.stack([(hit[:, 0] & mask).sum(), (hit.any(-1) & mask).sum()])

    @jax.jit
    def eval_step(student: Variables, teacher: Variables | None, device_arrays: Tree, batch: Tree) -> Tree:
        images, labels = dataset.preprocess(device_arrays, batch, None)
        outputs = networks.student.apply(student, images, taps=taps)
        logits = {STUDENT: outputs.logits}
        if teacher:
            network = required(networks.teacher, 'a teacher')
            logits[joint.TEACHER] = network.apply(teacher, images).logits
            if taps:
                paths = joint.residual_paths(network, teacher, outputs.taps, taps)
                logits |= {name: z for name, (z, _) in zip(joint.path_names(taps), paths)}
        right = jnp.where(batch['mask'], outputs.logits.argmax(-1) == labels, -1).astype(jnp.int8)
        return {name: counts(z, labels, batch['mask']) for name, z in logits.items()}, right

    return eval_step


def networks_for(student: Network, teacher: Network | None, method: Method) -> Networks:
    """The student, its teacher, and connectors where the method distils features."""
    connectors = Connectors(student.dtype, student.axis_name) if method.distill_weight else None
    return Networks(student, teacher, connectors)
