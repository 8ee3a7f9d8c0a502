"""The 3x3 stride 2 max-pool of an ImageNet stem, with a gradient that suits the chip."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jointrd_jax.method.interface import AnyArray

SIZE, STRIDE = 3, 2  # of the window, padded by one position on every side
PLACES = tuple((row, column) for row in range(SIZE) for column in range(SIZE))


def pool(x: Float[AnyArray, 'B H W C']) -> Float[Array, 'B h w C']:
    """The maximum of every window; its gradient goes to the first position, row by row, that has it.

    On a GPU XLA would find that position again in the backward pass (a scatter, with four maps of indices); there its
    place in the window, one byte, is kept from the forward pass. Both agree to the bit (benchmarks/step_bytes.py).
    """
    return jax.lax.platform_dependent(jnp.asarray(x), cuda=pool_by_place, default=pool_by_window)


def pool_by_window(x: Float[Array, 'B H W C']) -> Float[Array, 'B h w C']:
    padding: Any = ((1, 1), (1, 1))  # flax's annotation knows only 'SAME' and 'VALID'
    return nn.max_pool(x, (SIZE, SIZE), strides=(STRIDE, STRIDE), padding=padding)


@jax.custom_vjp
def pool_by_place(x: Float[Array, 'B H W C']) -> Float[Array, 'B h w C']:
    """`pool_by_window` with the gradient of `pool_backward`."""
    return pool_by_window(x)


def seen(x: Float[Array, 'B H W C'], number: int) -> Float[Array, 'B h w C']:
    """The value that each window has at place `number` of `PLACES`."""
    (batch, height, width, channels), (row, column) = x.shape, PLACES[number]
    rows, columns = (height + 1) // STRIDE, (width + 1) // STRIDE
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    stop = (batch, row + STRIDE * rows - 1, column + STRIDE * columns - 1, channels)
    return jax.lax.slice(padded, (0, row, column, 0), stop, (1, STRIDE, STRIDE, 1))


def pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    most = seen(x, 0)
    place = jnp.zeros(most.shape, jnp.uint8)
    for number in range(1, len(PLACES)):
        value = seen(x, number)
        place = jnp.where(value > most, jnp.uint8(number), place)
        most = jnp.maximum(most, value)
    return most, (place, x[..., :0])  # the latter for its shape


def pool_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    place, (_, height, width, _) = kept[0], kept[1].shape
    rows, columns = place.shape[1:3]
    total = jnp.zeros((), gradient.dtype)
    for number, (row, column) in reversed(list(enumerate(PLACES))):  # a position's windows in the order XLA adds them
        below, beside = height + 1 - row - STRIDE * (rows - 1), width + 1 - column - STRIDE * (columns - 1)
        sizes = ((0, 0, 0), (row - 1, below - 1, STRIDE - 1), (column - 1, beside - 1, STRIDE - 1), (0, 0, 0))
        part = jnp.where(place == number, gradient, 0)
        total += jax.lax.pad(part, jnp.zeros((), part.dtype), sizes)
    return (total,)


pool_by_place.defvjp(pool_forward, pool_backward)
