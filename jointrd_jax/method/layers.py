"""The layers of the networks: convolution, BatchNorm, activation. Feature maps are NHWC, kernels HWIO."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jointrd_jax.method.interface import AnyArray

REPARAMS = ('none', 'dirac', 'branches')
ACTIVATIONS = ('relu', 'leaky', 'prelu', 'annealed')
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

    Compiled for a CPU, a map of up to `AS_MATRIX` positions is multiplied by the matrix that the convolution is: XLA's
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
    def __call__(self, x: Float[AnyArray, 'B H W inputs']) -> Float[Array, 'B h w {self.features}']:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param('kernel', kaiming_normal, shape)
        if self.dirac:
            alpha = self.param('alpha', nn.initializers.ones, (self.features,))
            beta = self.param('beta', nn.initializers.constant(0.1), (self.features,))
            delta = jnp.asarray(dirac_delta(shape, self.groups), kernel.dtype)
            kernel = alpha.reshape(1, 1, 1, -1) * delta + beta.reshape(1, 1, 1, -1) * kernel
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.groups)


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch keeps it: the running variance is the unbiased one.

    Flax's keeps the biased one, which changes what a network computes after training (by n/(n-1), n the
    images times positions of a batch). Statistics are float32 (or wider) whatever the compute dtype,
    per device unless `axis_name` names the mapped axis to average over.
    """

    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[AnyArray, 'B h w C'], train: bool) -> Float[Array, 'B h w C']:
        shape = (x.shape[-1],)
        scale = self.param('scale', nn.initializers.ones, shape)
        bias = self.param('bias', nn.initializers.zeros, shape)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
        wide = jnp.asarray(x, jnp.promote_types(jnp.float32, x.dtype))
        if train:
            mean, mean_of_squares = wide.mean((0, 1, 2)), jnp.square(wide).mean((0, 1, 2))
            count = x.size // x.shape[-1]
            if self.axis_name is not None:
                mean, mean_of_squares = jax.lax.pmean((mean, mean_of_squares), self.axis_name)
                count *= jax.lax.psum(1, self.axis_name)
            var = jnp.maximum(mean_of_squares - jnp.square(mean), 0)
            keep = self.momentum
            if not self.is_initializing():
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var * (count / max(count - 1, 1))
        else:
            mean, var = running_mean.value, running_var.value
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        mean, factor, bias = (v.reshape(1, 1, 1, -1) for v in (mean, factor, bias))
        return ((wide - mean) * factor + bias).astype(self.dtype)


class Activation(nn.Module):
    """A rectifier: x where x > 0, slope * x elsewhere.

    The slope is 0 ('relu'), the constant `slope` ('leaky'), learnt per channel from `slope` on ('prelu'; He et al.,
    ICCV 2015), or a number that starts at `slope` and that training lets fall to 0 ('annealed', see `with_slope`):
    it is kept with the running statistics, so that what is evaluated, stored and exported has the slope of its step.
    What is exported of it is in deploy/fold.py and deploy/graph.py.
    """

    kind: str
    slope: float = 0.0

    @nn.compact
    def __call__(self, x: Float[AnyArray, 'B h w C']) -> Float[Array, 'B h w C']:
        if self.kind == 'relu':
            return nn.relu(x)
        slope: Any = jnp.float32(self.slope)
        if self.kind == 'prelu':
            slope = self.param('slope', nn.initializers.constant(self.slope), (x.shape[-1],)).reshape(1, 1, 1, -1)
        elif self.kind == 'annealed':
            slope = self.variable('batch_stats', 'slope', lambda: jnp.float32(self.slope)).value
        return jnp.where(x > 0, x, slope.astype(x.dtype) * x)


def with_slope(batch_stats: Any, slope: jax.typing.ArrayLike) -> Any:
    """The statistics of a network with the slope of every 'annealed' activation at `slope`."""

    def leaf(path: tuple, value: AnyArray) -> AnyArray:
        return jnp.asarray(slope, value.dtype) if path[-1].key == 'slope' else value

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
