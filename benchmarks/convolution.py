"""Small feature maps on the CPU backend: XLA's convolution against one matrix product (`layers.convolve`).

    python benchmarks/convolution.py

Forward and backward of a 3x3 convolution, batch 32, timed alternately; the median of the ratios of 15 rounds.
"""

import itertools
import statistics
import time

import jax
import jax.numpy as jnp

from jointrd_jax.method import layers

BATCH, ROUNDS, ROUND_SECONDS = 32, 15, 0.05
MAPS = [
    (1, 64),
    (1, 512),
    (2, 32),
    (2, 128),
    (2, 512),
    (3, 32),
    (3, 128),
    (4, 16),
    (4, 64),
]  # side, channels


def loss(as_matrix: bool):
    """A compiled forward and backward pass by the convolution's matrix or by XLA's convolution."""

    def function(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kept, layers.AS_MATRIX = layers.AS_MATRIX, MAPS[-1][0] ** 2 if as_matrix else 0
        try:
            return jnp.square(layers.convolve(x, kernel, 1)).sum()
        finally:
            layers.AS_MATRIX = kept

    return jax.jit(jax.grad(function, argnums=(0, 1)))


def seconds(function, calls: int, *arguments) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(function(*arguments))
    return (time.perf_counter() - began) / calls


def main() -> None:
    assert jax.default_backend() == 'cpu', 'the choice exists on the CPU backend alone'
    print('map       channels  convolution us  matrix product us  ratio')
    for side, channels in MAPS:
        x = jax.random.normal(jax.random.key(0), (BATCH, side, side, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
        functions = loss(False), loss(True)
        jax.block_until_ready([function(x, kernel) for function in functions])
        calls = [max(1, round(ROUND_SECONDS / seconds(function, 1, x, kernel))) for function in functions]
        times = [[], []]
        for _, (function, number, kept) in itertools.product(range(ROUNDS), tuple(zip(functions, calls, times))):
            kept.append(seconds(function, number, x, kernel))
        ratio = statistics.median(a / b for a, b in zip(*times))
        convolution, product = (1e6 * statistics.median(kept) for kept in times)
        print(f'{side}x{side} {channels:12} {convolution:15.0f} {product:18.0f} {ratio:6.2f}')


if __name__ == '__main__':
    main()
