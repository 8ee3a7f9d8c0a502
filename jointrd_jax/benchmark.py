"""Step times beside what their arithmetic costs and what the machine can do (`jointrd benchmark`).

Without a config the images are synthetic and nothing is imported beyond jax, flax, optax and the step itself.
Programs are compiled anew (no cache); steps of the procedures alternate, so that a machine that is slow for a
while is slow for all of them. One device.
"""

import collections
import gzip
import itertools
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jointrd_jax.errors import UserError, choice_error, whole_number
from jointrd_jax.method import joint
from jointrd_jax.method.joint import Method
from jointrd_jax.method.networks import create
from jointrd_jax.plan import compiled as read
from jointrd_jax.system import buckets, files, runtime
from jointrd_jax.train import step as step_lib

EVALUATE = 'evaluate'
PROCEDURES = ('resnet', 'plain', 'jointrd', 'jointrd_scratch', 'feature_kd', 'logit_kd', EVALUATE)
GPU_SHAPES, CPU_SHAPES = '18:32:128,18:32:512,34:224:256,50:224:256', '18:32:32,34:32:32,50:32:32'
ROUND_SECONDS = 0.5
TRACED_OPERATIONS = 16
CIFAR_EPOCHS, CIFAR_IMAGES = 200, (50_000, 10_000)  # trained on and evaluated in every epoch
BOOLEANS = {'true': True, 'false': False}


class Settings(NamedTuple):
    """Settings of the synthetic tasks; 0 and '' stand for what suits the device."""

    width: int = 0
    dtype: str = ''
    distill_weight: float = 1e-3
    remat: bool = False


BY_DEVICE = Settings()


class Task(NamedTuple):
    """What is timed: one procedure on networks, images and an optimiser."""

    procedure: str
    networks: joint.Networks
    method: Method
    dataset: Any
    batch: dict[str, np.ndarray]
    optimizer: optax.GradientTransformation
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
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9, nesterov=True))
    tasks = []
    for procedure in procedures:
        if procedure not in PROCEDURES:
            raise choice_error('procedure', procedure, PROCEDURES)
        method, student = methods.get(procedure, Method()), resnet if procedure == 'resnet' else plain
        teacher = resnet if method.needs_teacher else None
        networks = step_lib.networks_for(student, teacher, method)
        tasks.append(Task(procedure, networks, method, dataset, indices(batch_size), optimizer, shape, student.dtype))
    return tasks


def config_tasks(config: Any, procedures: Sequence[str]) -> list[Task]:
    """The tasks of a config, on its own data."""
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
        name, dtype = config.dataset.name, made.student.dtype
        tasks.append(Task(procedure, made.networks, made.method, dataset, batch, made.optimizer, name, dtype))
    return tasks


def program(task: Task, mesh: jax.sharding.Mesh) -> tuple[Callable, Any, tuple]:
    """The jitted step of a task, the state that it changes (None if it changes none) and its other arguments."""
    trains_teacher, networks = task.procedure == 'jointrd_scratch', task.networks
    everywhere = step_lib.replicated(mesh)
    key, shape = jax.random.key(0), task.dataset.image_shape
    device_arrays = step_lib.replicate(task.dataset.device_arrays, mesh)
    batch = step_lib.shard_batches([task.batch] * task.steps, mesh)

    def initial():
        return step_lib.initial_state(key, networks, task.method, shape, task.optimizer, trains_teacher)

    state = runtime.jit_once(initial, out_shardings=everywhere)()
    if task.procedure == EVALUATE:
        return step_lib.make_eval_step(task.dataset, networks, ()), None, (state.student, None, device_arrays, batch)
    frozen = None
    if networks.teacher and not trains_teacher:
        teacher = runtime.jit_once(networks.teacher.init)(key, jnp.zeros((1, *shape), jnp.float32))
        frozen = step_lib.replicate(step_lib.frozen_view(networks.teacher, teacher, task.method), mesh)
    device_step = step_lib.make_device_step(networks, task.method, task.optimizer, 1000, lambda epoch: jnp.float32(1))
    train_step = step_lib.make_train_step(task.dataset, device_step, mesh, task.steps)
    return train_step, state, (frozen, device_arrays, step_lib.replicate(np.int32(0), mesh), batch)


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


class Stepper:
    """A compiled step with its state, and what the compiler says of it."""

    def __init__(self, task: Task, mesh: jax.sharding.Mesh):
        function, self.state, self.arguments = program(task, mesh)
        self.has_state = self.state is not None
        began = time.perf_counter()
        lowered = function.lower(*([self.state] if self.has_state else []), *self.arguments)
        traced = time.perf_counter()
        name, _, value = task.compiler_option.partition('=')
        self.compiled = lowered.compile({name: BOOLEANS.get(value, value)} if name else None)
        self.row = {
            'shape': task.label,
            'procedure': task.procedure,
            'variant': task.variant,
            'batch_size': task.batch_size,
            'trace_seconds': round(traced - began, 2),
            'compile_seconds': round(time.perf_counter() - traced, 2),
            'memory_bytes': read.memory(self.compiled)['all'],
        }
        if task.steps == 1:  # of a loop XLA counts the body once
            # Counted before convolutions become library calls. XLA for GPUs has no count there: the CPU's is taken.
            self.row['flops'] = read.cost(lowered).get('flops') or flops_on_cpu(task)
            self.row['bytes'] = read.moved(read.cost(self.compiled).get('bytes accessed'), self.compiled.as_text())
        self.steps_a_call = task.steps
        self(2 * task.steps)
        began = time.perf_counter()
        self(task.steps)
        calls = max(1, round(ROUND_SECONDS / (time.perf_counter() - began)))
        self.steps_a_round = calls * task.steps
        self.seconds = []

    def __call__(self, steps: int) -> None:
        result = None
        for _ in range(steps // self.steps_a_call):
            if self.has_state:
                self.state, result = self.compiled(self.state, *self.arguments)
            else:
                result = self.compiled(*self.arguments)
        jax.block_until_ready((self.state, result))

    def round(self) -> None:
        began = time.perf_counter()
        self(self.steps_a_round)
        self.seconds.append((time.perf_counter() - began) / self.steps_a_round)


def operations(steps: int, directory: Path) -> list[tuple[str, float, float]]:
    """(operation, milliseconds, how many) per step of the newest trace in `directory`, all threads, longest first."""
    newest = max(directory.rglob('*.trace.json.gz'), key=lambda path: path.stat().st_mtime)
    events = json.loads(gzip.decompress(newest.read_bytes()))['traceEvents']
    total, count = collections.defaultdict(float), collections.defaultdict(float)
    for event in events:
        if event.get('ph') == 'X' and not event['name'].startswith(('end: ', '$')):
            name = re.sub(r'[.\d]+$', '', event['name'])
            total[name] += event['dur'] / 1e3 / steps
            count[name] += 1 / steps
    return [(name, total[name], count[name]) for name in sorted(total, key=lambda name: -total[name])]


def best_time(function: Callable, *arguments: Any, rounds: int = 7) -> float:
    """Seconds of the fastest call: what the machine can do."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)


def machine_peak(dtype: jnp.dtype) -> dict[str, float]:
    """FLOP/s of a square matrix product in `dtype` and bytes/s of a copy, of this machine as it is now."""
    on_cpu = jax.default_backend() == 'cpu'
    n, values = (2048, 2**25) if on_cpu else (8192, 2**28)
    a = jnp.ones((n, n), dtype)
    product = best_time(jax.jit(jnp.matmul), a, a)
    copied = best_time(jax.jit(lambda x: x + 1), jnp.ones(values, jnp.float32))
    return {'flops_per_second': 2 * n**3 / product, 'bytes_per_second': 8 * values / copied}


def finish(rows: list[dict[str, Any]], peak: dict[str, float]) -> None:
    """Add what follows from the times: rates, shares of the machine's peak, ratios to the plain step."""
    plain = {row['shape']: row for row in rows if row['procedure'] == 'plain' and not row['variant']}
    default = {(row['shape'], row['procedure']): row for row in rows if not row['variant']}
    for row in rows:
        row['images_per_second'] = round(row['batch_size'] / row['step_ms'] * 1e3, 1)
    for row in rows:
        seconds, flops, traffic = row['step_ms'] / 1e3, row.get('flops'), row.get('bytes')
        evaluation = default.get((row['shape'], EVALUATE))
        if ':32:' in row['shape'] and evaluation and row['procedure'] != EVALUATE:
            rates = row['images_per_second'], evaluation['images_per_second']
            epoch = sum(images / rate for images, rate in zip(CIFAR_IMAGES, rates))
            row['cifar_minutes'] = round(CIFAR_EPOCHS * epoch / 60, 1)
        if flops and flops > 0:
            row['flops_per_second'] = flops / seconds
            row['share_of_peak'] = round(flops / seconds / peak['flops_per_second'], 3)
            limit = max(flops / peak['flops_per_second'], (traffic or 0) / peak['bytes_per_second'])
            row['share_of_roofline'] = round(limit / seconds, 3)
        base = plain.get(row['shape'])
        if row['variant']:
            row['time_to_default'] = ratio(row, default[row['shape'], row['procedure']])
        elif base and row['procedure'] != EVALUATE:
            row['time_to_plain'] = ratio(row, base)
            row['flops_to_plain'] = round(flops / base['flops'], 3) if flops and base['flops'] else None


def ratio(row: dict[str, Any], base: dict[str, Any]) -> float:
    """The ratio of two step times: its median over the rounds, in which they ran side by side."""
    return round(statistics.median(a / b for a, b in zip(row['rounds'], base['rounds'])), 3)


COLUMNS = {
    'shape': 'shape', 'procedure': 'procedure', 'compile_seconds': 'compile s', 'step_ms': 'step ms',
    'spread_ms': 'quartiles', 'images_per_second': 'images/s', 'time_to_plain': 'time/plain',
    'flops_to_plain': 'flops/plain', 'share_of_peak': 'of peak', 'share_of_roofline': 'of roofline',
    'cifar_minutes': '200 CIFAR epochs, min', 'memory_bytes': 'memory MB',
    'variant': 'variant', 'time_to_default': 'time/default',
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], name: str) -> str:
        value = row.get(name)
        if value is None or value == '':
            return '-'
        if name == 'memory_bytes':
            return f'{value / 1e6:.0f}'
        return '-'.join(map(str, value)) if isinstance(value, list) else str(value)

    columns = [name for name in COLUMNS if any(row.get(name) not in (None, '') for row in rows)]
    lines = [[COLUMNS[name] for name in columns], *([cell(row, name) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(text.rjust(width) for text, width in zip(line, widths)) for line in lines)


def variants(task: Task, options: Sequence[str], steps: Sequence[int]) -> list[Task]:
    """The task as it is, with each compiler option, and with each number of steps at once if it trains."""
    others = [task._replace(compiler_option=option) for option in options]
    if task.procedure != EVALUATE:
        others += [task._replace(steps=number) for number in steps]
    return [task, *others]


def measure(
    groups: Iterator[list[Task]], rounds: int, options: Sequence[str] = (), steps: Sequence[int] = (), trace: str = ''
) -> dict[str, Any]:
    """Time the tasks of each group alternately, group by group, and return the figures as JSON values.

    Args:
      groups: tasks that are compared with one another.
      rounds: how many times they alternate.
      options: compiler options; each task is timed with each of them too (see `variants`).
      steps: numbers of steps at once; each training task is timed with each of them too.
      trace: a directory to profile a round of each task into; '': none.
    """
    mesh = step_lib.make_mesh(jax.devices()[:1])
    rows, dtype = [], jnp.dtype(jnp.float32)
    for tasks in groups:
        tasks = [variant for task in tasks for variant in variants(task, options, steps)]
        steppers = [Stepper(task, mesh) for task in tasks]
        dtype = jnp.dtype(tasks[0].dtype)
        for _, stepper in itertools.product(range(rounds), steppers):
            stepper.round()
        for task, stepper in zip(tasks, steppers) if trace else ():
            with jax.profiler.trace(trace):
                stepper(stepper.steps_a_round)
            print(f'{task.label} {task.procedure}: ms and number a step')
            for name, ms, count in operations(stepper.steps_a_round, Path(trace))[:TRACED_OPERATIONS]:
                print(f'{ms:9.3f} {count:7.1f}  {name}')
        for stepper in steppers:
            ms = [round(1e3 * seconds, 3) for seconds in stepper.seconds]
            quartiles = statistics.quantiles(ms, n=4) if len(ms) > 1 else ms * 3
            spread = [round(quartiles[0], 3), round(quartiles[2], 3)]
            rows.append({**stepper.row, 'step_ms': statistics.median(ms), 'spread_ms': spread, 'rounds': ms})
    peak = machine_peak(dtype)
    finish(rows, peak)
    return {
        'device': jax.devices()[0].device_kind,
        'cores': os.cpu_count(),
        'dtype': str(np.dtype(dtype)),
        'versions': {'jax': jax.__version__},
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
        'peak': {name: float(f'{value:.4g}') for name, value in peak.items()},
        'rows': rows,
    }


def default_shapes() -> str:
    """The shapes that suit this machine's device."""
    return CPU_SHAPES if jax.default_backend() == 'cpu' else GPU_SHAPES


def run(
    config: Any = None,
    shapes: str = '',
    procedures: Sequence[str] = ('resnet', 'plain', 'jointrd'),
    settings: Settings = BY_DEVICE,
    rounds: int = 9,
    compiler_options: Sequence[str] = (),
    steps_per_dispatch: Sequence[str] = (),
    trace: str = '',
    out: str = '',
) -> dict[str, Any]:
    """Measure the procedures on `config`'s data, or on synthetic images of `shapes`; print and return the figures.

    Args:
      config: a recipe; None: synthetic images.
      shapes: DEPTH:PIXELS:BATCH, comma-separated; '': those that suit the device.
      procedures: of `PROCEDURES`.
      settings: of the synthetic tasks.
      rounds: how many times the procedures alternate.
      compiler_options: NAME=VALUE; each task is timed with each of them too.
      steps_per_dispatch: whole numbers from 2; each training task is timed with so many steps a call too.
      trace: a directory to profile a round of each task into.
      out: a file for the figures, as JSON.

    Raises:
      UserError: a shape, procedure or number is not valid, or the directory of `out` does not exist.
    """
    runtime.quieten()
    jax.config.update('jax_enable_compilation_cache', False)
    if config is not None:
        groups = iter([config_tasks(config, procedures)])
    else:
        groups = (synthetic_tasks(shape, procedures, settings) for shape in (shapes or default_shapes()).split(','))
    if out and not buckets.is_remote(out) and not Path(out).absolute().parent.is_dir():
        raise UserError(f'--out: the directory of {out} does not exist')
    steps = [whole_number('steps_per_dispatch', number, 2, 1000) for number in steps_per_dispatch]
    result = measure(groups, rounds, compiler_options, steps, trace)
    peak = result['peak']
    print(
        f'{result["device"]}, jax {jax.__version__}, {result["dtype"]}; matrix product '
        f'{peak["flops_per_second"] / 1e12:.3g} TFLOP/s, copy {peak["bytes_per_second"] / 1e9:.3g} GB/s'
    )
    print(table(result['rows']))
    if out:
        files.write_json(buckets.place(out), result)
    return result


if __name__ == '__main__':
    import sys

    from jointrd_jax import cli

    cli.run('benchmark', sys.argv[1:])
