"""One staged network that is the ResNet, the plain CNN, or any hybrid of the two.

The residual teacher R and the plain student P have the same blocks in the same stages; they differ
in which blocks keep a shortcut (and in how convolutions are parametrised, and in their activations). Parameter trees
share names and shapes block by block, so `splice` of two trees is the tree of a `hybrid` network.

Images and feature maps are NHWC. A block's ReLU opens the block, so feature maps at block boundaries
(the tap points) and the last feature map are taken before their ReLU; with the ReLU before pooling
the ResNet equals torchvision's (v1.5: the stride sits in the 3x3 convolution).
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jointrd_jax.errors import UserError, choice_error
from jointrd_jax.method.architectures import (
    ACTIVATIONS,
    BOTTLENECK_DEPTHS,
    BOTTLENECK_EXPANSION,
    CIFAR_DEPTHS,
    REPARAMS,
    SHORTCUTS,
    STAGE_SIZES,
    STEMS,
)
from jointrd_jax.method.interface import AnyArray, Outputs, Variables
from jointrd_jax.method.layers import (
    FADING,
    SLOPE,
    Activation,
    BatchNorm,
    Conv,
    Fading,
    conv_norm,
    dirac_delta,
    torch_linear_init,
)
from jointrd_jax.method.pooling import pool
from jointrd_jax.system.runtime import jit_once

IDENTITY_NOISE = 0.1  # the share of its random kernel that a start near the identity keeps, as Dirac's beta

BLOCK_CHOICES = ('shortcuts', 'reparam', 'activation', 'slope', 'groups')  # of a network, which may be made per block


class Block(nn.Module):
    """A basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) block: activation, convolutions, optional shortcut.

    With reparam='branches' every convolution has, while training, a 1x1 convolution (where it is a 3x3 one) and, where
    it keeps the shape, the identity beside it, each with a BatchNorm of its own, and their sum goes on (RepVGG: Ding et
    al., CVPR 2021). All of it folds into the one convolution. deploy/fold.py repeats the order of a block's layers: a
    change here needs one there.
    """

    channels: int  # of its output (a bottleneck's has four times as many)
    hidden: int  # channels between its convolutions
    stride: int
    bottleneck: bool
    shortcut: str  # 'identity' | 'projection' | 'none'
    fades: bool  # whether the shortcut's weight falls to 0 in training
    reparam: str
    activation: str
    slope: float
    groups: int  # of a bottleneck's 3x3 convolution
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[AnyArray, 'B H W inputs'], train: bool) -> Float[Array, 'B h w outputs']:
        if self.bottleneck:
            layers = [(1, 1, 1), (3, self.stride, self.groups), (1, 1, 1)]
        else:
            layers = [(3, self.stride, 1), (3, 1, 1)]
        outputs = self.channels * (BOTTLENECK_EXPANSION if self.bottleneck else 1)

        def norm(features, name):
            return BatchNorm(features, self.dtype, self.axis_name, name=name)

        def conv(h, features, size, stride, name, norm_name, groups=1):
            module = Conv(features, size, stride, self.reparam == 'dirac', self.dtype, groups, name=name)
            return conv_norm(module, norm(features, norm_name), h, train)

        x = Activation(self.activation, self.slope, name='act1')(x)
        h = x
        for i, (size, stride, groups) in enumerate(layers, 1):
            if i > 1:
                h = Activation(self.activation, self.slope, name=f'act{i}')(h)
            features = outputs if i == len(layers) else self.hidden
            entering, h = h, conv(h, features, size, stride, f'conv{i}', f'bn{i}', groups)
            if self.reparam == 'branches':
                if size > 1:
                    h += conv(entering, features, 1, stride, f'conv{i}_1x1', f'bn{i}_1x1', groups)
                if entering.shape == h.shape:
                    h += norm(features, f'bn{i}_identity')(entering, train)
        if self.shortcut == 'projection':
            x = conv(x, outputs, 1, self.stride, 'shortcut_conv', 'shortcut_bn')
        if self.fades:
            x = Fading(name='fading')(x)
        return h if self.shortcut == 'none' else h + x


class Stem(nn.Module):
    """CIFAR: 3x3 convolution. ImageNet: 7x7 stride 2 and a 3x3 stride 2 max-pool.

    pool_first, which no published network has: the ImageNet stem with its pool before its convolution. It makes a
    map of the same size without the four times larger one in between, which is the peak of ResNet-18's and -34's
    feature maps; a convolution of stride 4 would too, but Ethos-U55 and -U65 support at most 3.
    """

    channels: int
    kind: str
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[AnyArray, 'B H W C'], train: bool) -> Float[Array, 'B h w {self.channels}']:
        size, stride = (3, 1) if self.kind == 'cifar' else (7, 2)
        if self.kind == 'pool_first':
            x = pool(x)
        conv = Conv(self.channels, size, stride, dtype=self.dtype, name='conv')
        x = conv_norm(conv, BatchNorm(self.channels, self.dtype, self.axis_name, name='bn'), x, train)
        if self.kind == 'imagenet':  # before the ReLU of the first block, with which it commutes
            x = pool(x)
        return x


class Network(nn.Module):
    """ResNet, plain CNN or hybrid, by `shortcuts` ('all' | 'projection' | 'fading' | 'none', or one per block).

    'projection' keeps only the 1x1 projection of the first block of stages 2 and later (the JointRD
    authors' student); 'fading' has all while their weight falls to 0 in training. `reparam` ('none' | 'dirac' |
    'branches') parametrises every convolution but the stem's, `activation` ('relu' | 'leaky' | 'prelu' | 'annealed',
    see `layers.Activation`) with its `slope` is that of every block; each of these, and the `groups` of the 3x3
    convolutions of bottlenecks, may be given per block. The rectifier before the pooling is a ReLU always.
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
    reparam: str | tuple[str, ...] = 'none'
    activation: str | tuple[str, ...] = 'relu'
    slope: float | tuple[float, ...] = 0.0
    groups: int | tuple[int, ...] = 1
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
    def rectifiers(self) -> int:
        """Activations on the main path."""
        return self.num_blocks * (3 if self.bottleneck else 2)

    @property
    def feature_channels(self) -> int:
        """Channels of the last feature map."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * (BOTTLENECK_EXPANSION if self.bottleneck else 1)

    def per_block(self, choice: Any) -> tuple:
        """A network-wide choice, repeated for every block; choices per block as they are.

        Raises:
          UserError: they are not one for each block.
        """
        if not isinstance(choice, (tuple, list)):
            return (choice,) * self.num_blocks
        if len(choice) != self.num_blocks:
            raise UserError(f'{len(choice)} per-block choices were given for a network of {self.num_blocks} blocks')
        return tuple(choice)

    def block_shortcuts(self) -> tuple[str, ...]:
        """What each block's shortcut is: 'identity', 'projection' or 'none'; one that fades, as it begins."""
        starts = (0, *self.stage_ends[:-1])
        kinds = []
        for block, choice in enumerate(self.per_block(self.shortcuts)):
            if choice not in SHORTCUTS:
                raise choice_error('shortcuts', choice, SHORTCUTS)
            changes_shape = block in starts and (block > 0 or self.bottleneck)
            if choice in ('all', 'fading'):
                kinds.append('projection' if changes_shape else 'identity')
            else:
                kinds.append('projection' if choice == 'projection' and block in starts[1:] else 'none')
        return tuple(kinds)

    @property
    def shortcut_choices(self) -> str:
        """`shortcuts` as config.model.shortcuts takes it."""
        return self.shortcuts if isinstance(self.shortcuts, str) else ','.join(self.shortcuts)

    def block_fades(self) -> tuple[bool, ...]:
        """Whether each block has a shortcut that fades."""
        return tuple(choice == 'fading' for choice in self.per_block(self.shortcuts))

    def faded(self) -> 'Network':
        """This network without the shortcuts that fade."""
        if not any(self.block_fades()):
            return self
        kept = tuple('none' if choice == 'fading' else choice for choice in self.per_block(self.shortcuts))
        return self.clone(shortcuts='none' if set(kept) == {'none'} else kept)

    def with_relus(self) -> 'Network':
        """This network with ReLUs in the place of annealed rectifiers."""
        if self.activation == 'annealed':
            return self.clone(activation='relu', slope=0.0)
        kinds, slopes = self.per_block(self.activation), self.per_block(self.slope)
        return self.clone(
            activation=tuple('relu' if kind == 'annealed' else kind for kind in kinds),
            slope=tuple(0.0 if kind == 'annealed' else slope for kind, slope in zip(kinds, slopes)),
        )

    def block_hidden(self) -> tuple[int, ...]:
        """Channels between each block's convolutions."""
        stages = [s for s, n in enumerate(self.stage_sizes) for _ in range(n)]
        return self.per_block(tuple(self.hidden) or tuple(self.width * 2**stage for stage in stages))

    def check_choices(self) -> None:
        """Raise UserError for an unknown choice, choices that are not one per block, or groups that do not fit."""
        for name, choices in (('reparam', REPARAMS), ('activation', ACTIVATIONS)):
            for choice in self.per_block(getattr(self, name)):
                if choice not in choices:
                    raise choice_error(name, choice, choices)
        if self.stem_kind not in STEMS:
            raise choice_error('stem', self.stem_kind, STEMS)
        self.block_shortcuts()
        self.per_block(self.slope)
        for groups, hidden in zip(self.per_block(self.groups), self.block_hidden()):
            if hidden % groups:
                raise UserError(f'{hidden} channels inside a block do not divide into groups={groups}')
            if groups > 1 and not self.bottleneck:
                raise UserError(f'groups={groups}: only the 3x3 convolutions of bottlenecks have groups')

    def setup(self):
        self.check_choices()
        self.stem = Stem(self.width, self.stem_kind, self.dtype, self.axis_name)
        stages = [s for s, n in enumerate(self.stage_sizes) for _ in range(n)]
        choices = list(
            zip(*(self.per_block(getattr(self, name)) for name in ('reparam', 'activation', 'slope', 'groups')))
        )
        shortcuts, fades, hidden = self.block_shortcuts(), self.block_fades(), self.block_hidden()
        block_class: Any = nn.remat(Block, static_argnums=2) if self.remat else Block  # argument 2 is `train`
        for block, (name, stage) in enumerate(zip(self.block_names, stages)):
            opens_stage = block in self.stage_ends
            module = block_class(
                self.width * 2**stage,
                hidden[block],
                2 if opens_stage else 1,
                self.bottleneck,
                shortcuts[block],
                fades[block],
                *choices[block],
                self.dtype,
                self.axis_name,
            )
            setattr(self, name, module)
        init = torch_linear_init(self.feature_channels)
        self.head = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=init, bias_init=init)

    # As `StagedNetwork` has it: Flax's annotation adds a tuple that its callers would have to exclude.
    if TYPE_CHECKING:

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...

    def __call__(self, x: Float[AnyArray, 'B H W C'], train: bool = False, taps: Sequence[int] = ()) -> Outputs:
        """Images [B, H, W, C] through the whole network, with the maps at the boundaries `taps` (ascending)."""
        h = self.run_stem(x, train)
        tapped, at = [], 0
        for tap in taps:
            h, at = self.run_blocks(h, at, tap, train), tap
            tapped.append(h)
        h = self.run_blocks(h, at, self.num_blocks, train)
        return Outputs(self.run_head(h), h, tuple(tapped))

    def run_stem(self, x: Float[AnyArray, 'B H W C'], train: bool = False) -> Float[Array, 'B h w {self.width}']:
        """Images to the feature map at boundary 0."""
        return self.stem(x, train)

    def run_blocks(
        self, h: Float[AnyArray, 'B _ _ _'], start: int, stop: int, train: bool = False
    ) -> Float[Array, 'B _ _ _']:
        """The feature map at boundary `start` to the one at boundary `stop`."""
        for name in self.block_names[start:stop]:
            h = getattr(self, name)(h, train)
        return jnp.asarray(h)

    def run_head(self, h: Float[AnyArray, 'B h w {self.feature_channels}']) -> Float[Array, 'B {self.num_classes}']:
        """The last feature map to logits [B, classes], at least float32."""
        logits = self.head(nn.relu(h).mean((1, 2)))
        return logits.astype(jnp.promote_types(jnp.float32, logits.dtype))

    def initialise(self, key: Key[Array, ''], image_shape: Sequence[int]) -> Variables:
        """Fresh {'params', 'batch_stats'} for images of `image_shape` [H, W, C]; `init` is for use inside a jit."""
        return jit_once(self.init)(key, jnp.zeros((1, *image_shape), jnp.float32))

    def near_identity(self, params: Any) -> Any:
        """Fresh parameters whose blocks nearly pass on what they are given: each kernel W there becomes delta + 0.1 W.

        delta is the identity kernel; channels beyond those that enter get 0.1 W alone. With rectifiers that are nearly
        linear a block then starts much as a residual block does (compare Xiao et al., ICML 2018, who start tanh
        networks from orthogonal kernels). This sets where training begins and is no parametrisation: the kernel
        itself is trained.
        """

        def start(path: tuple, leaf: AnyArray) -> AnyArray:
            block, layer, kind = (key.key for key in path) if len(path) == 3 else ('', '', '')
            if block not in groups or kind != 'kernel':
                return leaf
            of_layer = groups[block] if self.bottleneck and layer == 'conv2' else 1
            return jnp.asarray(dirac_delta(leaf.shape, of_layer), leaf.dtype) + IDENTITY_NOISE * leaf

        groups = dict(zip(self.block_names, self.per_block(self.groups)))
        return jax.tree_util.tree_map_with_path(start, params)

    def shapes(self, image_shape: Sequence[int]) -> Variables:
        """`initialise` without computing anything: a jax.ShapeDtypeStruct for each array."""
        key: Any = self  # hashable, as flax makes modules, though their type does not say so
        return jax.tree.map(lambda leaf: leaf, traced_shapes(key, tuple(image_shape)))  # a dict of the caller's own


@functools.lru_cache(maxsize=64)
def traced_shapes(network: Network, image_shape: tuple[int, ...]) -> Variables:
    """`Network.shapes`, traced once for each network: reading a weight file asks for them twice."""
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


class Connectors(nn.Module):
    """One 1x1 convolution + BatchNorm per path, from a path's last feature map to the teacher's space."""

    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: dict[str, Float[AnyArray, 'B h w C']], train: bool = True
    ) -> dict[str, Float[Array, 'B h w C']]:
        """Feature maps [B, h, w, C] by the name of their path, each through that path's connector."""
        outputs = {}
        for path, f in features.items():
            f = Conv(f.shape[-1], 1, dtype=self.dtype, name=f'{path}_conv')(f)
            outputs[path] = BatchNorm(f.shape[-1], self.dtype, self.axis_name, name=f'{path}_bn')(f, train)
        return outputs


def deployed(network: Network, variables: Variables) -> tuple[Network, Variables]:
    """The network as it is deployed, where a schedule has brought to 0 what it sets (see `layers.annealed`).

    Without the shortcuts that fade, once their weight is 0, and with ReLUs in the place of annealed rectifiers, once
    their slope is.
    """
    stats = variables['batch_stats']
    fading = [name for name, fades in zip(network.block_names, network.block_fades()) if fades]
    rectifiers = [
        (name, layer)
        for name, kind in zip(network.block_names, network.per_block(network.activation))
        if kind == 'annealed'
        for layer in stats[name]
        if layer.startswith('act')
    ]
    left_out: set[tuple[str, str]] = set()  # (block, layer)
    if fading and not any(float(stats[name]['fading'][FADING]) for name in fading):
        network = network.faded()
        left_out |= {(name, layer) for name in fading for layer in ('fading', 'shortcut_conv', 'shortcut_bn')}
    if rectifiers and not any(float(stats[name][layer][SLOPE]) for name, layer in rectifiers):
        network = network.with_relus()
        left_out |= set(rectifiers)
    kept = {
        collection: {
            name: {layer: leaves for layer, leaves in layers.items() if (name, layer) not in left_out}
            for name, layers in tree.items()
        }
        for collection, tree in variables.items()
    }
    return network, kept


def hybrid(student: Network, teacher: Network, block: int) -> Network:
    """The network of the student's stem and first `block` blocks and the teacher's later ones."""

    def choice(name: str) -> tuple:
        return student.per_block(getattr(student, name))[:block] + teacher.per_block(getattr(teacher, name))[block:]

    choices: dict[str, Any] = {name: choice(name) for name in BLOCK_CHOICES}
    hidden = student.block_hidden()[:block] + teacher.block_hidden()[block:]
    return student.clone(**choices, hidden=hidden)


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


def grouped_hidden(stage_sizes: Sequence[int], width: int, groups: int, width_per_group: int) -> tuple[int, ...]:
    """Channels inside each bottleneck as torchvision counts them; () where they are the stage's own."""
    if (groups, width_per_group) == (1, 64):
        return ()
    return tuple(width * 2**s * width_per_group // 64 * groups for s, n in enumerate(stage_sizes) for _ in range(n))


def shape(depth: int, groups: int = 1, width_per_group: int = 64) -> dict[str, Any]:
    """The fields of `Network` for a standard network of `depth` layers."""
    sizes = STAGE_SIZES[depth]
    fields: dict[str, Any] = dict(stage_sizes=sizes, bottleneck=depth in BOTTLENECK_DEPTHS)
    if depth in CIFAR_DEPTHS:
        fields |= dict(width=16, stem_kind='cifar', num_classes=10)
    return fields | dict(groups=groups, hidden=grouped_hidden(sizes, 64, groups, width_per_group))


SHAPES: dict[str, dict[str, Any]] = {
    **{f'{{}}{depth}': shape(depth) for depth in STAGE_SIZES},
    'wide_{}50_2': shape(50, width_per_group=128),
    'wide_{}101_2': shape(101, width_per_group=128),
    '{}50_32x4d': shape(50, groups=32, width_per_group=4),
    '{}101_32x8d': shape(101, groups=32, width_per_group=8),
}
FAMILIES = {'resnet': 'all', 'projection': 'projection', 'plain': 'none'}
REGISTRY: dict[str, dict[str, Any]] = {
    (name.format('resnext') if fields['groups'] > 1 and family == 'resnet' else name.format(family)): {
        **fields, 'shortcuts': shortcuts,
    }
    for name, fields in SHAPES.items()
    for family, shortcuts in FAMILIES.items()
}  # fmt: skip


def create(name: str, **overrides: Any) -> Network:
    """A registered network with any `Network` field overridden.

    Names are torchvision's for ResNets (resnet18 ... resnet152, wide_resnet50_2, resnext50_32x4d) and those of He et
    al.'s CIFAR family (resnet20 ... resnet110); `plain` or `projection` in the place of `resnet` is the same network
    without shortcuts, or with projections only.

    Raises:
      UserError: an unregistered name; the message lists the names.
    """
    if name not in REGISTRY:
        raise choice_error('model', name, sorted(REGISTRY))
    fields = {**REGISTRY[name], **overrides}
    if fields['hidden'] and 'width' in overrides and 'hidden' not in overrides:
        fields['hidden'] = tuple(n * overrides['width'] // 64 for n in fields['hidden'])
    return Network(**fields)
