"""Small feature maps on the CPU backend: XLA's convolution against one matrix product (`models.convolve`).

    python benchmarks/convolution.py

Forward and backward of a 3x3 convolution, batch 32, timed alternately; the median of the ratios of 15 rounds.
"""

import itertools
import statistics
import time

import jax
import jax.numpy as jnp

from jointrd_jax import models

BATCH, ROUNDS, CALLS = 32, 15, 50
MAPS = [(1, 64), (2, 32), (2, 64), (4, 16), (4, 32), (8, 8), (8, 16)]  # side, channels


def loss(largest_map: int):
    """A compiled forward and backward pass in which maps of at most `largest_map` positions are matrix products."""

    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        models.SMALL_MAP, kept = largest_map, models.SMALL_MAP
        try:
            return jnp.square(models.convolve(x, kernel, 1)).sum()
        finally:
            models.SMALL_MAP = kept

    return jax.jit(jax.grad(function, argnums=(0, 1)))


def seconds(function, *arguments) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        jax.block_until_ready(function(*arguments))
    return (time.perf_counter() - began) / CALLS


def main() -> None:
    assert jax.default_backend() == 'cpu', 'the choice exists on the CPU backend alone'
    print('map       channels  convolution us  matrix product us  ratio')
    for side, channels in MAPS:
        x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
        functions = loss(0), loss(10**6)
        jax.block_until_ready([function(x, kernel) for function in functions])
        times = [[], []]
        for _, (function, kept) in itertools.product(range(ROUNDS), tuple(zip(functions, times))):
            kept.append(seconds(function, x, kernel))
        ratio = statistics.median(a / b for a, b in zip(*times))
        convolution, product = (1e6 * statistics.median(kept) for kept in times)
        print(f'{side}x{side} {channels:12} {convolution:15.0f} {product:18.0f} {ratio:6.2f}')


if __name__ == '__main__':
    main()
