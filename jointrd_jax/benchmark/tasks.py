"""What is timed: a procedure on networks, images and an optimiser, and the program that it is."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jointrd_jax.errors import UserError, choice_error
from jointrd_jax.method import joint
from jointrd_jax.method.joint import Method
from jointrd_jax.method.networks import create
from jointrd_jax.plan import compiled as read
from jointrd_jax.system import runtime
from jointrd_jax.train import step as step_lib
from jointrd_jax.train.step import TrainState

EVALUATE = 'evaluate'
PROCEDURES = ('resnet', 'plain', 'jointrd', 'jointrd_scratch', 'feature_kd', 'logit_kd', EVALUATE)
GPU_SHAPES, CPU_SHAPES = '18:32:128,18:32:512,34:224:256,50:224:256', '18:32:32,34:32:32,50:32:32'


class Settings(NamedTuple):
    """Settings of the synthetic tasks; 0 and '' stand for what suits the device."""

    width: int = 0
    dtype: str = ''
    distill_weight: float = 1e-3
    remat: bool = False


BY_DEVICE = Settings()


class Task(NamedTuple):
    """What is timed: one procedure on networks, images and an optimiser.

    Attributes:
      make_state: gives a fresh state; traceable.
      make_train_step: the program of so many steps on a mesh; see `step.make_train_step`.
    """

    procedure: str
    networks: joint.Networks
    method: Method
    dataset: Any
    batch: dict[str, np.ndarray]
    make_state: Callable[[], TrainState]
    make_train_step: Callable[[jax.sharding.Mesh, int], Callable]
    label: str
    dtype: Any
    compiler_option: str = ''  # NAME=VALUE
    steps: int = 1  # in one call

    @property
    def batch_size(self) -> int:
        return len(self.batch['mask'])

    @property
    def variant(self) -> str:
        """How the task differs from the default one: a compiler option, or '4 steps at once'; '' if it does not."""
        return self.compiler_option or (f'{self.steps} steps at once' if self.steps > 1 else '')


class Synthetic:
    """Random uint8 images on the device, with those parts of a `data.Dataset` that the step uses."""

    def __init__(self, pixels: int, batch_size: int, num_classes: int):
        random = np.random.default_rng(0)
        self.image_shape = (pixels, pixels, 3)
        self.device_arrays = {
            'images': random.integers(0, 256, (batch_size, *self.image_shape), np.uint8),
            'labels': random.integers(0, num_classes, batch_size, np.int32),
        }

    def preprocess(self, device_arrays: Any, batch: Any, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        images = device_arrays['images'][batch['index']].astype(jnp.float32) / 255 - 0.5
        return images, device_arrays['labels'][batch['index']]


def indices(batch_size: int) -> dict[str, np.ndarray]:
    return {'index': np.arange(batch_size, dtype=np.int32), 'mask': np.ones(batch_size, bool)}


def trains_teacher(procedure: str) -> bool:
    return procedure == 'jointrd_scratch'


def synthetic_task(
    procedure: str, networks: joint.Networks, method: Method, dataset: Any, batch_size: int, label: str, dtype: Any
) -> Task:
    """A task whose mixing weight is 1."""
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9, nesterov=True))

    def make_state() -> TrainState:
        return step_lib.initial_state(
            jax.random.key(0), networks, method, dataset.image_shape, optimizer, trains_teacher(procedure)
        )

    def make_train_step(mesh: jax.sharding.Mesh, steps: int) -> Callable:
        device_step = step_lib.make_device_step(networks, method, optimizer, 1000, lambda epoch: jnp.float32(1))
        return step_lib.make_train_step(dataset, device_step, mesh, steps)

    return Task(procedure, networks, method, dataset, indices(batch_size), make_state, make_train_step, label, dtype)


def synthetic_tasks(shape: str, procedures: Sequence[str], settings: Settings = BY_DEVICE) -> list[Task]:
    """The tasks of one DEPTH:PIXELS:BATCH.

    Raises:
      UserError: `shape` is not DEPTH:PIXELS:BATCH, or there is no such procedure.
    """
    try:
        depth, pixels, batch_size = map(int, shape.split(':'))
    except ValueError:
        raise UserError(f'--shapes: {shape!r} is not DEPTH:PIXELS:BATCH, such as 18:32:128') from None
    on_cpu, small = jax.default_backend() == 'cpu', pixels < 100
    fields: dict[str, Any] = dict(
        width=settings.width or (16 if on_cpu else 64),
        num_classes=100 if small else 1000,
        stem_kind='cifar' if small else 'imagenet',
        dtype=jnp.dtype(settings.dtype or ('float32' if on_cpu else 'bfloat16')),
        remat=settings.remat,
    )
    resnet, plain = (create(f'{family}{depth}', **fields) for family in ('resnet', 'plain'))
    weight = settings.distill_weight
    methods = {
        'jointrd': Method(plain.stage_ends[:-1], weight, average_paths=True),
        'jointrd_scratch': Method(plain.stage_ends[:-1], weight, average_paths=True),
        'feature_kd': Method(distill_weight=weight),
        'logit_kd': Method(kl_alpha=0.9),
    }
    dataset = Synthetic(pixels, batch_size, fields['num_classes'])
    tasks = []
    for procedure in procedures:
        if procedure not in PROCEDURES:
            raise choice_error('procedure', procedure, PROCEDURES)
        method, student = methods.get(procedure, Method()), resnet if procedure == 'resnet' else plain
        teacher = resnet if method.needs_teacher else None
        networks = step_lib.networks_for(student, teacher, method)
        tasks.append(synthetic_task(procedure, networks, method, dataset, batch_size, shape, student.dtype))
    return tasks


def config_tasks(config: Any, procedures: Sequence[str]) -> list[Task]:
    """The tasks of a config: its own programs, on its own data."""
    from jointrd_jax import config as config_lib, data
    from jointrd_jax.train import assembly

    tasks = []
    for procedure in procedures:
        config.procedure = 'plain' if procedure == EVALUATE else procedure
        config_lib.validate(config)
        dataset = data.load(config)
        made = assembly.of(config, dataset)
        batch = next(iter(dataset.train_batches(0)))
        batch['mask'] = np.ones(config.batch_size, bool)
        state, train_step = functools.partial(made.make_state, 0), functools.partial(made.make_train_step, made.method)
        name, dtype = config.dataset.name, made.student.dtype
        tasks.append(Task(procedure, made.networks, made.method, dataset, batch, state, train_step, name, dtype))
    return tasks


def program(task: Task, mesh: jax.sharding.Mesh) -> tuple[Callable, Any, tuple]:
    """The jitted step of a task, the state that it changes (None if it changes none) and its other arguments."""
    networks, everywhere = task.networks, step_lib.replicated(mesh)
    device_arrays = step_lib.replicate(task.dataset.device_arrays, mesh)
    batch = step_lib.shard_batches([task.batch] * task.steps, mesh)
    state = runtime.jit_once(task.make_state, out_shardings=everywhere)()
    if task.procedure == EVALUATE:
        return step_lib.make_eval_step(task.dataset, networks, ()), None, (state.student, None, device_arrays, batch)
    frozen = None
    if networks.teacher and not trains_teacher(task.procedure):
        images = jnp.zeros((1, *task.dataset.image_shape), jnp.float32)
        teacher = runtime.jit_once(networks.teacher.init)(jax.random.key(0), images)
        frozen = step_lib.replicate(step_lib.frozen_view(networks.teacher, teacher, task.method), mesh)
    return (
        task.make_train_step(mesh, task.steps),
        state,
        (frozen, device_arrays, step_lib.replicate(np.int32(0), mesh), batch),
    )


def flops_on_cpu(task: Task) -> float | None:
    """FLOPs of a call of a task's program as lowered for a CPU; None where JAX_PLATFORMS leaves out the CPU."""
    try:
        cpu = jax.devices('cpu')[:1]
    except RuntimeError:
        return None
    with jax.default_device(cpu[0]):
        function, state, arguments = program(task, step_lib.make_mesh(cpu))
        lowered = function.lower(*([] if state is None else [state]), *arguments)
    return read.cost(lowered).get('flops')


def variants(task: Task, options: Sequence[str], steps: Sequence[int]) -> list[Task]:
    """The task as it is, with each compiler option, and with each number of steps at once if it trains."""
    others = [task._replace(compiler_option=option) for option in options]
    if task.procedure != EVALUATE:
        others += [task._replace(steps=number) for number in steps]
    return [task, *others]


def default_shapes() -> str:
    """The shapes that suit this machine's device."""
    return CPU_SHAPES if jax.default_backend() == 'cpu' else GPU_SHAPES
