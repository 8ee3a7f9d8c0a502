"""The times of a compiled step, what the compiler says of it, and what the machine can do."""

import collections
import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jointrd_jax.benchmark.tasks import Task, flops_on_cpu, program
from jointrd_jax.plan import compiled as read

ROUND_SECONDS = 0.5
BOOLEANS = {'true': True, 'false': False}


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
