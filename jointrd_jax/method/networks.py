"""One staged network that is the ResNet, the plain CNN, or any hybrid of the two.

The residual teacher R and the plain student P have the same blocks in the same stages; they differ
in which blocks keep a shortcut (and in whether convolutions are Dirac-parametrised). Parameter trees
share names and shapes block by block, so `splice` of two trees is the tree of a `hybrid` network.

Images and feature maps are NHWC. A block's ReLU opens the block, so feature maps at block boundaries
(the tap points) and the last feature map are taken before their ReLU; with the ReLU before pooling
the ResNet equals torchvision's (v1.5: the stride sits in the 3x3 convolution).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jointrd_jax.errors import UserError, choice_error
from jointrd_jax.system.runtime import jit_once

SHORTCUTS = ('all', 'projection', 'none')
STEMS = ('cifar', 'imagenet')
STAGE_SIZES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BOTTLENECK_DEPTHS = (50,)
BOTTLENECK_EXPANSION = 4


Variables = dict[str, Any]

kaiming_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def torch_linear_init(fan_in: int):
    """PyTorch's default for a linear layer: uniform in +-1/sqrt(fan_in), weight and bias alike."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def dirac_delta(shape: Sequence[int], dtype: Any) -> jax.Array:
    """The identity kernel of `shape` [kh, kw, in, out]: passes channel i to channel i."""
    height, width, inputs, outputs = shape
    return jnp.zeros(shape, dtype).at[height // 2, width // 2].set(jnp.eye(inputs, outputs, dtype=dtype))


AS_MATRIX = 4  # positions of a map up to which, on a CPU, its convolution is one matrix product


def convolution_matrix(kernel: jax.Array, height: int, width: int, stride: int) -> jax.Array:
    """[H, W, in, H', W', out]: the matrix by which a convolution multiplies a map of `height` x `width`."""
    size = kernel.shape[0]
    row, column, out_row, out_column = np.ogrid[:height, :width, :height:stride, :width:stride]
    i, j = row - out_row + size // 2, column - out_column + size // 2  # of the weight between the two positions
    is_joined = (0 <= i) & (i < size) & (0 <= j) & (j < size)
    weights = kernel.reshape(size * size, *kernel.shape[2:])
    with_zero = jnp.pad(weights, ((0, 1), (0, 0), (0, 0)))
    return with_zero[np.where(is_joined, i * size + j, size * size)].transpose(0, 1, 4, 2, 3, 5)


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution of `x` [B, H, W, in] with `kernel` [k, k, in, out], k odd, symmetric zero padding.

    Compiled for a CPU, a map of up to `AS_MATRIX` positions is multiplied by the matrix that the convolution is: XLA's
    convolution there is many times slower on maps of up to 2x2, and quicker from 3x3 on (benchmarks/convolution.py).
    """
    height, width = x.shape[1:3]

    def as_matrix(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.tensordot(x, convolution_matrix(kernel, height, width, stride), 3)

    def as_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        pad = [(kernel.shape[0] // 2,) * 2] * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pad, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    if height * width > AS_MATRIX:
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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', kaiming_normal, (self.size, self.size, x.shape[-1], self.features))
        if self.dirac:
            alpha = self.param('alpha', nn.initializers.ones, (self.features,))
            beta = self.param('beta', nn.initializers.constant(0.1), (self.features,))
            delta = dirac_delta(kernel.shape, kernel.dtype)
            kernel = alpha.reshape(1, 1, 1, -1) * delta + beta.reshape(1, 1, 1, -1) * kernel
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


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
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param('scale', nn.initializers.ones, shape)
        bias = self.param('bias', nn.initializers.zeros, shape)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
        wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
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


class Block(nn.Module):
    """A basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) block: ReLU, convolutions, optional shortcut."""

    channels: int  # of its output (a bottleneck's has four times as many)
    hidden: int  # channels between its convolutions
    stride: int
    bottleneck: bool
    shortcut: str  # 'identity' | 'projection' | 'none'
    dirac: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.bottleneck:
            layers = [(1, 1), (3, self.stride), (1, 1)]
        else:
            layers = [(3, self.stride), (3, 1)]
        outputs = self.channels * (BOTTLENECK_EXPANSION if self.bottleneck else 1)

        def conv_bn(h, features, size, stride, conv_name, bn_name):
            h = Conv(features, size, stride, self.dirac, self.dtype, name=conv_name)(h)
            return BatchNorm(self.dtype, self.axis_name, name=bn_name)(h, train)

        x = nn.relu(x)
        h = x
        for i, (size, stride) in enumerate(layers, 1):
            last = i == len(layers)
            h = conv_bn(h, outputs if last else self.hidden, size, stride, f'conv{i}', f'bn{i}')
            if not last:
                h = nn.relu(h)
        if self.shortcut == 'projection':
            x = conv_bn(x, outputs, 1, self.stride, 'shortcut_conv', 'shortcut_bn')
        return h if self.shortcut == 'none' else h + x


class Stem(nn.Module):
    """CIFAR: 3x3 convolution. ImageNet: 7x7 stride 2 and a 3x3 stride 2 max-pool."""

    channels: int
    kind: str
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size, stride = (7, 2) if self.kind == 'imagenet' else (3, 1)
        x = Conv(self.channels, size, stride, dtype=self.dtype, name='conv')(x)
        x = BatchNorm(self.dtype, self.axis_name, name='bn')(x, train)
        if self.kind == 'imagenet':  # before the ReLU of the first block, with which it commutes
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


class Outputs(NamedTuple):
    """What a network says of a batch: logits [B, classes] and feature maps, each before its ReLU."""

    logits: jax.Array
    features: jax.Array  # the last block's output [B, h, w, C]
    taps: tuple[jax.Array, ...] = ()  # the maps at the block boundaries asked for


class Network(nn.Module):
    """ResNet, plain CNN or hybrid, by `shortcuts` ('all' | 'projection' | 'none', or one per block).

    'projection' keeps only the 1x1 projection of the first block of stages 2 and later (the JointRD
    authors' student); `dirac` (or one bool per block) parametrises every convolution but the stem's.
    `hidden`, one per block, sets the channels inside each block where they are not the stage's own.
    `axis_name`, when set, makes BatchNorm statistics global over that mapped axis. With `remat` the backward
    pass computes each block anew from its input instead of keeping what lies inside it.
    A block boundary is numbered by the blocks before it: 0 is after the stem, `num_blocks` the end.
    """

    stage_sizes: tuple[int, ...]
    bottleneck: bool = False
    width: int = 64
    num_classes: int = 1000
    stem_kind: str = 'imagenet'
    shortcuts: str | tuple[str, ...] = 'all'
    dirac: bool | tuple[bool, ...] = False
    hidden: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @property
    def num_blocks(self) -> int:
        return sum(self.stage_sizes)

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Block boundaries at the end of each stage, the last included."""
        return tuple(sum(self.stage_sizes[: s + 1]) for s in range(len(self.stage_sizes)))

    @property
    def block_names(self) -> tuple[str, ...]:
        return tuple(f'stage{s}_block{b}' for s, n in enumerate(self.stage_sizes, 1) for b in range(1, n + 1))

    @property
    def depth(self) -> int:
        """Layers with weights on the main path, counted as the literature does (stem and head included)."""
        return 2 + self.num_blocks * (3 if self.bottleneck else 2)

    @property
    def feature_channels(self) -> int:
        """Channels of the last feature map."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * (BOTTLENECK_EXPANSION if self.bottleneck else 1)

    def per_block(self, choice: Any) -> tuple:
        """A network-wide choice, spread over the blocks; one per block is passed through."""
        if not isinstance(choice, (tuple, list)):
            return (choice,) * self.num_blocks
        if len(choice) != self.num_blocks:
            raise UserError(f'{len(choice)} per-block choices were given for a network of {self.num_blocks} blocks')
        return tuple(choice)

    def block_shortcuts(self) -> tuple[str, ...]:
        """What each block's shortcut is: 'identity', 'projection' or 'none'."""
        starts = (0, *self.stage_ends[:-1])
        kinds = []
        for block, choice in enumerate(self.per_block(self.shortcuts)):
            if choice not in SHORTCUTS:
                raise choice_error('shortcuts', choice, SHORTCUTS)
            changes_shape = block in starts and (block > 0 or self.bottleneck)
            if choice == 'all':
                kinds.append('projection' if changes_shape else 'identity')
            else:
                kinds.append('projection' if choice == 'projection' and block in starts[1:] else 'none')
        return tuple(kinds)

    def block_hidden(self) -> tuple[int, ...]:
        """Channels between each block's convolutions."""
        stages = [s for s, n in enumerate(self.stage_sizes) for _ in range(n)]
        return self.per_block(tuple(self.hidden) or tuple(self.width * 2**stage for stage in stages))

    def setup(self):
        if self.stem_kind not in STEMS:
            raise choice_error('stem', self.stem_kind, STEMS)
        self.stem = Stem(self.width, self.stem_kind, self.dtype, self.axis_name)
        stages = [s for s, n in enumerate(self.stage_sizes) for _ in range(n)]
        shortcuts, dirac, hidden = self.block_shortcuts(), self.per_block(self.dirac), self.block_hidden()
        block_class = nn.remat(Block, static_argnums=2) if self.remat else Block  # argument 2 is `train`
        for block, (name, stage) in enumerate(zip(self.block_names, stages)):
            opens_stage = block in self.stage_ends
            module = block_class(
                self.width * 2**stage,
                hidden[block],
                2 if opens_stage else 1,
                self.bottleneck,
                shortcuts[block],
                dirac[block],
                self.dtype,
                self.axis_name,
            )
            setattr(self, name, module)
        init = torch_linear_init(self.feature_channels)
        self.head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=init, bias_init=init)

    def __call__(self, x: jax.Array, train: bool = False, taps: Sequence[int] = ()) -> Outputs:
        """Images [B, H, W, C] through the whole network, with the maps at the boundaries `taps` (ascending)."""
        h = self.run_stem(x, train)
        tapped, at = [], 0
        for tap in taps:
            h, at = self.run_blocks(h, at, tap, train), tap
            tapped.append(h)
        h = self.run_blocks(h, at, self.num_blocks, train)
        return Outputs(self.run_head(h), h, tuple(tapped))

    def run_stem(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images to the feature map at boundary 0."""
        return self.stem(x, train)

    def run_blocks(self, h: jax.Array, start: int, stop: int, train: bool = False) -> jax.Array:
        """The feature map at boundary `start` to the one at boundary `stop`."""
        for name in self.block_names[start:stop]:
            h = getattr(self, name)(h, train)
        return h

    def run_head(self, h: jax.Array) -> jax.Array:
        """The last feature map to logits [B, classes], at least float32."""
        logits = self.head(nn.relu(h).mean((1, 2)))
        return logits.astype(jnp.promote_types(jnp.float32, logits.dtype))

    def initialise(self, key: jax.Array, image_shape: Sequence[int]) -> Variables:
        """Fresh {'params', 'batch_stats'} for images of `image_shape` [H, W, C]; `init` is for use inside a jit."""
        return jit_once(self.init)(key, jnp.zeros((1, *image_shape), jnp.float32))


class Connectors(nn.Module):
    """One 1x1 convolution + BatchNorm per path, from a path's last feature map to the teacher's space."""

    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], train: bool = True) -> dict[str, jax.Array]:
        """Feature maps [B, h, w, C] by the name of their path, each through that path's connector."""
        outputs = {}
        for path, f in features.items():
            f = Conv(f.shape[-1], 1, dtype=self.dtype, name=f'{path}_conv')(f)
            outputs[path] = BatchNorm(self.dtype, self.axis_name, name=f'{path}_bn')(f, train)
        return outputs


def hybrid(student: Network, teacher: Network, block: int) -> Network:
    """The network of the student's stem and first `block` blocks and the teacher's later ones."""
    return student.clone(
        shortcuts=student.per_block(student.shortcuts)[:block] + teacher.per_block(teacher.shortcuts)[block:],
        dirac=student.per_block(student.dirac)[:block] + teacher.per_block(teacher.dirac)[block:],
    )


def splice(network: Network, student: Variables, teacher: Variables, block: int) -> Variables:
    """The variables of `hybrid(student, teacher, block)`, merged from the two trees (no copies)."""
    early = {'stem', *network.block_names[:block]}
    names = ('stem', *network.block_names, 'head')
    return {
        collection: {
            name: tree[collection][name]
            for name, tree in ((n, student if n in early else teacher) for n in names)
            if name in tree[collection]
        }
        for collection in ('params', 'batch_stats')
    }


def parameter_count(variables: Variables) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


REGISTRY: dict[str, dict[str, Any]] = {
    f'{family}{depth}': dict(stage_sizes=sizes, bottleneck=depth in BOTTLENECK_DEPTHS, shortcuts=shortcuts)
    for depth, sizes in STAGE_SIZES.items()
    for family, shortcuts in (('resnet', 'all'), ('projection', 'projection'), ('plain', 'none'))
}


def create(name: str, **overrides: Any) -> Network:
    """A registered network (resnet18 ... plain50) with any `Network` field overridden.

    Raises:
      UserError: an unregistered name; the message lists the names.
    """
    if name not in REGISTRY:
        raise choice_error('model', name, sorted(REGISTRY))
    return Network(**{**REGISTRY[name], **overrides})
