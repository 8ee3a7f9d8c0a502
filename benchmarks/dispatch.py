"""What a call of a compiled step costs on the host, by the number of its arrays: microseconds of CPU time.

    python benchmarks/dispatch.py

The program does next to nothing on as many numbers as a step has arrays, donated and replicated as the training state
is, so that the time is Python's and the runtime's own. Forms: what training does (the function that `jax.jit` returns),
the compiled executable called directly, and all numbers in one buffer.
"""

import os

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=1'

import statistics
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

COUNTS = (1, 50, 200, 470)  # 470: the state, the teacher and the data of a CIFAR run with ResNet-18
CALLS, ROUNDS = 200, 9


def add(state):
    return jax.tree.map(lambda x: x + 1, state)


def microseconds(call, state) -> float:
    """CPU time of this thread for a call, by the median of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(CALLS):
            state = call(state)
        rounds.append((time.thread_time() - began) / CALLS * 1e6)
        jax.block_until_ready(state)
    return statistics.median(rounds)


def main() -> None:
    everywhere = NamedSharding(Mesh(jax.devices(), 'devices'), PartitionSpec())

    def fresh(count: int):
        return jax.device_put({f'{i:03}': jnp.float32(i) for i in range(count)}, everywhere)

    step = jax.jit(add, donate_argnums=0)
    print('arrays | jitted | compiled executable | one buffer of as many numbers')
    for count in COUNTS:
        compiled = step.lower(fresh(count)).compile()
        buffer = jax.device_put(jnp.zeros(count), everywhere)
        times = [microseconds(call, state) for call, state in (
            (step, step(fresh(count))), (compiled, fresh(count)), (step, step(buffer)),
        )]  # fmt: skip
        print(f'{count:6} | ' + ' | '.join(f'{value:.0f}' for value in times))


if __name__ == '__main__':
    main()
