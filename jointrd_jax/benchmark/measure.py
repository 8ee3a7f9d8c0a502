"""Measure procedures side by side, print the table and return the figures."""

import itertools
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jointrd_jax.benchmark.stepper import Stepper, machine_peak, operations
from jointrd_jax.benchmark.table import finish, table
from jointrd_jax.benchmark.tasks import (
    BY_DEVICE,
    Settings,
    Task,
    config_tasks,
    default_shapes,
    synthetic_tasks,
    variants,
)
from jointrd_jax.errors import UserError, whole_number
from jointrd_jax.system import buckets, files, runtime
from jointrd_jax.train import step as step_lib

TRACED_OPERATIONS = 16  # shown of each task


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
