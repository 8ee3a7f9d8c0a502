"""The layers of the networks: convolution, BatchNorm, activation. Feature maps are NHWC, kernels HWIO."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jointrd_jax.method.interface import AnyArray

Vector = Float[AnyArray, ' C']  # one number for each channel
SLOPE, FADING = 'slope', 'weight'  # in the running statistics: of annealed activations, and of shortcuts that fade
TAILORED_ETA = 0.9  # as Zhang et al. chose it for every depth

kaiming_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def torch_linear_init(fan_in: int):
    """PyTorch's default for a linear layer: uniform in +-1/sqrt(fan_in), weight and bias alike."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def dirac_delta(shape: Sequence[int], groups: int = 1) -> np.ndarray:
    """The identity kernel of `shape` [kh, kw, in / groups, out]: passes channel i of each group to its channel i."""
    height, width, inputs, outputs = shape
    delta = np.zeros(shape)
    delta[height // 2, width // 2] = np.tile(np.eye(inputs, outputs // groups), (1, groups))
    return delta


AS_MATRIX = 4  # positions of a map up to which, on a CPU, its convolution is one matrix product


def convolution_matrix(
    kernel: Float[AnyArray, 'k k inputs outputs'], height: int, width: int, stride: int
) -> Float[Array, '{height} {width} inputs h w outputs']:
    """[H, W, in, H', W', out]: the matrix by which a convolution multiplies a map of `height` x `width`."""
    size = kernel.shape[0]
    row, column, out_row, out_column = np.ogrid[:height, :width, :height:stride, :width:stride]
    i, j = row - out_row + size // 2, column - out_column + size // 2  # of the weight between the two positions
    is_joined = (0 <= i) & (i < size) & (0 <= j) & (j < size)
    weights = kernel.reshape(size * size, *kernel.shape[2:])
    with_zero = jnp.pad(weights, ((0, 1), (0, 0), (0, 0)))
    return with_zero[np.where(is_joined, i * size + j, size * size)].transpose(0, 1, 4, 2, 3, 5)


def convolve(
    x: Float[AnyArray, 'B H W inputs'],
    kernel: Float[AnyArray, 'k k inputs//{groups} outputs'],
    stride: int,
    groups: int = 1,
) -> Float[Array, 'B h w outputs']:
    """Convolution of `x` [B, H, W, in] with `kernel` [k, k, in / groups, out], k odd, symmetric zero padding.

    Compiled for a CPU, a map of up to `AS_MATRIX` positions is multiplied by the convolution's matrix: XLA's
    convolution there is many times slower on maps of up to 2x2, and quicker from 3x3 on (benchmarks/convolution.py).
    """
    height, width = x.shape[1:3]
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)

    def as_matrix(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.tensordot(x, convolution_matrix(kernel, height, width, stride), 3)

    def as_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        half = kernel.shape[0] // 2
        pad, numbers = [(half, half)] * 2, ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pad, dimension_numbers=numbers, feature_group_count=groups
        )

    if groups > 1 or height * width > AS_MATRIX:
        return as_convolution(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=as_matrix, default=as_convolution)


class Conv(nn.Module):
    """Convolution without bias, symmetric padding; `dirac` makes its weight alpha*delta + beta*W.

    Dirac parametrisation (Zagoruyko & Komodakis, 2017; DiracNets) with alpha and beta per output
    channel, 1 and 0.1 at the start, as the JointRD authors' ImageNet student has it.
    """

    features: int
    size: int
    stride: int = 1
    dirac: bool = False
    dtype: Any = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, 'B H W inputs'], norm: tuple[jax.Array, jax.Array] | None = None
    ) -> Float[Array, 'B h w {self.features}']:
        """`norm`, (factor, shift) per output channel, is folded into the kernel and a bias."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', kaiming_normal, shape)
        if self.dirac:
            alpha = self.param('alpha', nn.initializers.ones, (self.features,))
            beta = self.param('beta', nn.initializers.constant(0.1), (self.features,))
            delta = jnp.asarray(dirac_delta(shape, self.groups), kernel.dtype)
            kernel = alpha.reshape(1, 1, 1, -1) * delta + beta.reshape(1, 1, 1, -1) * kernel
        if norm is None:
            return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.groups)
        factor, shift = (v.reshape(1, 1, 1, -1) for v in norm)
        y = convolve(x.astype(self.dtype), (kernel * factor).astype(self.dtype), self.stride, self.groups)
        return y + shift.astype(self.dtype)  # not wider: cuDNN's convolutions then add it themselves


def wide(x: AnyArray) -> jax.Array:
    """`x` in float32; a wider dtype stays as it is."""
    return jnp.asarray(x, jnp.promote_types(jnp.float32, x.dtype))


def over_channels(v: Vector) -> Float[AnyArray, '1 1 1 C']:
    """A vector of the channels that broadcasts over maps."""
    return v.reshape(1, 1, 1, -1)


def affine(
    x: Float[AnyArray, 'B H W C'], mean: Vector, factor: Vector, bias: Vector, dtype: Any
) -> Float[Array, 'B H W C']:
    """(x - mean) * factor + bias per channel, computed wide, as `dtype`."""
    return ((wide(x) - over_channels(mean)) * over_channels(factor) + over_channels(bias)).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise(
    x: Float[AnyArray, 'B H W C'], scale: Vector, bias: Vector, epsilon: float, axis_name: str | None, dtype: Any
) -> tuple[Float[Array, 'B H W C'], Float[Array, ' C'], Float[Array, ' C']]:
    """`x` normalised by the statistics of the batch; its mean and biased variance per channel.

    The statistics are for the running averages: no gradient flows back from them. The gradient to `x` is that of
    automatic differentiation, from two sums that one pass over the maps gives; differentiation's own form takes two
    (benchmarks/step_bytes.py).
    """
    return normalise_forward(x, scale, bias, epsilon, axis_name, dtype)[0]


def normalise_forward(x, scale, bias, epsilon, axis_name, dtype):
    mean, mean_of_squares = wide(x).mean((0, 1, 2)), jnp.square(wide(x)).mean((0, 1, 2))
    if axis_name is not None:
        mean, mean_of_squares = jax.lax.pmean((mean, mean_of_squares), axis_name)
    var = jnp.maximum(mean_of_squares - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(var + epsilon)
    return (affine(x, mean, inverse * scale, bias, dtype), mean, var), (x, scale, mean, inverse)


def normalise_backward(epsilon, axis_name, dtype, kept, gradients):
    (x, scale, mean, inverse), gradient = kept, wide(gradients[0])
    centred = wide(x) - over_channels(mean)
    total, projected = gradient.sum((0, 1, 2)), (gradient * centred).sum((0, 1, 2))
    shift, slope = total * (x.shape[-1] / x.size), projected * (x.shape[-1] / x.size) * jnp.square(inverse)
    if axis_name is not None:
        shift, slope = jax.lax.pmean((shift, slope), axis_name)
    to_x = over_channels(inverse * scale) * (gradient - over_channels(shift) - centred * over_channels(slope))
    return to_x.astype(x.dtype), projected * inverse, total


normalise.defvjp(normalise_forward, normalise_backward)


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch keeps it: the running variance is the unbiased one.

    Flax's keeps the biased one, which changes what a network computes after training (by n/(n-1), n the
    images times positions of a batch). Statistics are float32 (or wider) whatever the compute dtype,
    per device unless `axis_name` names the mapped axis to average over.
    """

    features: int
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5

    def setup(self) -> None:
        shape = (self.features,)
        self.scale = self.param('scale', nn.initializers.ones, shape)
        self.bias = self.param('bias', nn.initializers.zeros, shape)
        self.mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
        self.var = self.variable('batch_stats', 'var', jnp.ones, shape)

    def folded(self) -> tuple[jax.Array, jax.Array]:
        """(factor, shift) [C]: by the running statistics it is x * factor + shift."""
        factor = jax.lax.rsqrt(jnp.asarray(self.var.value) + self.epsilon) * self.scale
        return factor, self.bias - self.mean.value * factor

    def __call__(self, x: Float[AnyArray, 'B h w C'], train: bool) -> Float[Array, 'B h w C']:
        # Variables read from a file are NumPy's.
        x, scale, bias = jnp.asarray(x), jnp.asarray(self.scale), jnp.asarray(self.bias)
        if not train:
            factor = jax.lax.rsqrt(jnp.asarray(self.var.value) + self.epsilon) * scale
            return affine(x, jnp.asarray(self.mean.value), factor, bias, self.dtype)
        normalised: Any = normalise(x, scale, bias, self.epsilon, self.axis_name, self.dtype)  # custom_vjp's is object
        y, mean, var = normalised
        if not self.is_initializing():
            count = x.size // x.shape[-1] * (1 if self.axis_name is None else jax.lax.psum(1, self.axis_name))
            keep = self.momentum
            self.mean.value = keep * self.mean.value + (1 - keep) * mean
            self.var.value = keep * self.var.value + (1 - keep) * var * (count / max(count - 1, 1))
        return y


def conv_norm(
    conv: Conv, norm: BatchNorm, x: Float[AnyArray, 'B H W C'], train: bool
) -> Float[Array, 'B h w features']:
    """norm(conv(x)); by running statistics the norm is folded into the convolution: no pass over its map is left."""
    return norm(conv(x), train) if train else conv(x, norm.folded())


@jax.custom_vjp
def rectify(x: Float[Array, '*shape']) -> Float[Array, '*shape']:
    """max(x, 0), whose gradient passes where the result is positive: `x` itself need not be kept for it."""
    return jnp.maximum(x, 0)


def rectify_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA would ask for the sign of x again, which on a GPU is another map to write and to read. On a TPU, where what
    # surrounds a convolution is computed inside it, the barrier would be what costs (benchmarks/step_bytes.py). On a
    # CPU XLA takes barriers out before it fuses, unless it is told not to (docs/experiments.md, RepVGG's branches).
    y = jnp.maximum(x, 0)
    barrier = jax.lax.optimization_barrier
    y = jax.lax.platform_dependent(y, cuda=barrier, cpu=barrier, default=lambda y: y)
    return y, y


rectify.defvjp(rectify_forward, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))


class Activation(nn.Module):
    """A rectifier: x where x > 0, slope * x elsewhere.

    The slope is 0 ('relu'), the constant `slope` ('leaky'), learnt per channel from `slope` on ('prelu'; He et al.,
    ICCV 2015), or a number that starts at `slope` and that training lets fall to 0 ('annealed', see `annealed`):
    it is kept with the running statistics, so that what is evaluated, stored and exported has the slope of its step.
    What is exported of it is in deploy/fold.py and deploy/graph.py.
    """

    kind: str
    slope: float = 0.0

    @nn.compact
    def __call__(self, x: Float[AnyArray, 'B h w C']) -> Float[Array, 'B h w C']:
        if self.kind == 'relu':
            return rectify(jnp.asarray(x))
        slope: Any = jnp.float32(self.slope)
        if self.kind == 'prelu':
            slope = self.param('slope', nn.initializers.constant(self.slope), (x.shape[-1],)).reshape(1, 1, 1, -1)
        elif self.kind == 'annealed':
            slope = self.variable('batch_stats', SLOPE, lambda: jnp.float32(self.slope)).value
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


class Fading(nn.Module):
    """A shortcut times a weight that training lets fall from 1 to 0 (see `annealed`), where there is none any more.

    Monti, Tootoonian & Cao, "Avoiding Degradation in Deep Feed-Forward Networks by Phasing Out Skip-Connections",
    ICANN 2018, learn that weight; here a schedule sets it. As an annealed slope it is kept with the running statistics.
    """

    @nn.compact
    def __call__(self, x: Float[AnyArray, 'B h w C']) -> Float[Array, 'B h w C']:
        weight: Any = self.variable('batch_stats', FADING, lambda: jnp.float32(1)).value
        return weight.astype(x.dtype) * x


def is_annealed(path: tuple) -> bool:
    """Whether the leaf at `path` of the running statistics is a number that a schedule sets."""
    return path[-1].key in (SLOPE, FADING)


def annealed(batch_stats: Any, values: dict[str, jax.Array]) -> Any:
    """The statistics of a network with the numbers that schedules set at `values`, by name: `SLOPE`, `FADING`."""

    def leaf(path: tuple, value: AnyArray) -> AnyArray:
        return jnp.asarray(values[path[-1].key], value.dtype) if path[-1].key in values else value

    return jax.tree_util.tree_map_with_path(leaf, batch_stats)


def tailored_slope(rectifiers: int, eta: float = TAILORED_ETA) -> float:
    """The negative slope that tailors a chain of so many leaky rectifiers, without shortcuts, to its depth.

    Zhang, Botev & Martens, "Deep Learning without Shortcuts: Shaping the Kernel with Tailored Rectifiers", ICLR 2022:
    of two images whose maps have the cosine c, one rectifier of slope a makes the cosine

        C(c) = c + (1 - a)^2 / (pi (1 + a^2)) * (sqrt(1 - c^2) - c arccos(c)),

    and a is the slope for which the whole chain takes orthogonal images (c = 0) to the cosine `eta`. Their scale
    sqrt(2 / (1 + a^2)) is left out: a BatchNorm follows every convolution here.
    """

    def cosine(slope: float) -> float:
        c, gain = 0.0, (1 - slope) ** 2 / (math.pi * (1 + slope**2))
        for _ in range(rectifiers):
            c = min(c + gain * (math.sqrt(1 - c * c) - c * math.acos(c)), 1.0)
        return c

    low, high = 0.0, 1.0  # the cosine falls from near 1 (ReLU) to 0 (linear) between them
    if cosine(low) <= eta:  # so few rectifiers that ReLUs do not reach eta
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cosine(middle) > eta else (low, middle)
    return low
