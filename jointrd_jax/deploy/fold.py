"""A trained network folded for deployment: BatchNorm, Dirac and branches disappear into convolutions and biases.

    scale * (conv(x, W) - mean) / sqrt(var + eps) + bias  =  conv(x, W * f) + (bias - mean * f),
    f = scale / sqrt(var + eps),  and W = alpha * identity + beta * W' where Dirac-parametrised

per output channel, computed in float64 and rounded once. The branches beside a convolution (Network.reparam) are
convolutions as well, with a 1x1 kernel or the identity in the middle of a 3x3 kernel; once folded, their kernels and
biases add up to those of one convolution.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jointrd_jax.deploy.graph import INPUT, OUTPUT, Graph, Node, with_first
from jointrd_jax.errors import UserError
from jointrd_jax.method.layers import FADING, BatchNorm, dirac_delta
from jointrd_jax.method.networks import Network, Variables, deployed
from jointrd_jax.runs.torch_names import torch_module


def fold_norm(variables: Variables, place: str, norm: str, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a convolution with `kernel` and the BatchNorm `norm` behind it."""
    weights, stats = (
        {k: np.asarray(a, np.float64) for k, a in variables[collection][place][norm].items()}
        for collection in ('params', 'batch_stats')
    )
    factor = weights['scale'] / np.sqrt(stats['var'] + BatchNorm.epsilon)
    return kernel * factor, weights['bias'] - stats['mean'] * factor


def fold_conv(variables: Variables, place: str, conv: str, norm: str, groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [h, w, in / groups, out] and bias [out] of a convolution, its branches and BatchNorm, in float64."""
    layers = variables['params'][place]
    weights = {k: np.asarray(a, np.float64) for k, a in layers[conv].items()}
    kernel = weights['kernel']
    identity = dirac_delta(kernel.shape, groups)
    if 'alpha' in weights:
        kernel = weights['beta'] * kernel + weights['alpha'] * identity
    kernel, bias = fold_norm(variables, place, norm, kernel)
    branches = []
    if f'{conv}_1x1' in layers:
        pad = [(n // 2, n // 2) for n in kernel.shape[:2]] + [(0, 0)] * 2
        branches.append((f'{norm}_1x1', np.pad(np.asarray(layers[f'{conv}_1x1']['kernel'], np.float64), pad)))
    if f'{norm}_identity' in layers:
        branches.append((f'{norm}_identity', identity))
    for branch_norm, branch in branches:
        branch, branch_bias = fold_norm(variables, place, branch_norm, branch)
        kernel, bias = kernel + branch, bias + branch_bias
    return kernel, bias


def fold_shortcut(variables: Variables, place: str, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Kernel [1, 1, in, out] and bias [out] of a block's shortcut, in float64; None where it has none.

    `kind` is that of `Network.block_shortcuts`. A shortcut that fades is multiplied by what is left of its weight.
    """
    if kind == 'none':
        return None
    fading = variables['batch_stats'][place].get('fading')
    weight = float(fading[FADING]) if fading else 1.0
    if kind == 'projection':
        kernel, bias = fold_conv(variables, place, 'shortcut_conv', 'shortcut_bn')
    else:
        channels = variables['params'][place]['conv1']['kernel'].shape[2]
        kernel, bias = dirac_delta((1, 1, channels, channels)), np.zeros(channels)
    return weight * kernel, weight * bias


def fold(network: Network, variables: Variables, image_shape: tuple[int, int, int]) -> Graph:
    """The graph that computes `network.apply(variables, images).logits` for images of `image_shape`.

    Tensors are named by the PyTorch module that makes them (`layer1.0.conv1`, `layer1.0.conv1.relu`).
    """
    network, variables = deployed(network, variables)
    nodes: list[Node] = []

    def emit(op: str, *inputs: str, output: str, **attributes) -> str:
        nodes.append(Node(op, inputs, output, **attributes))
        return output

    def conv(x: str, place: str, layer: str, norm: str, stride: int, groups: int = 1) -> str:
        return convolution(x, place, layer, *fold_conv(variables, place, layer, norm, groups), stride, groups)

    def convolution(
        x: str, place: str, layer: str, kernel: np.ndarray, bias: np.ndarray, stride: int, groups: int = 1
    ) -> str:
        return emit(
            'conv', x, output=torch_module((place, layer), 'torchvision'), kernel=kernel.astype(np.float32),
            bias=bias.astype(np.float32), size=kernel.shape[0], stride=stride, groups=groups,
        )  # fmt: skip

    def relu(x: str) -> str:
        return emit('relu', x, output=f'{x}.relu')

    def activation(x: str, block: int, number: int) -> str:
        """The rectifier `number` of a block."""
        kind, slope = kinds[block], slopes[block]
        name = f'act{number}'
        if kind == 'prelu':
            slope = np.asarray(variables['params'][network.block_names[block]][name]['slope'], np.float32)
            return emit('prelu', x, output=f'{x}.prelu', slope=slope)
        if kind == 'annealed':
            slope = variables['batch_stats'][network.block_names[block]][name]['slope']
        if kind == 'relu':
            return relu(x)
        return emit('leaky_relu', x, output=f'{x}.leaky_relu', slope=np.asarray(slope, np.float32))

    kinds, slopes, groups = (network.per_block(c) for c in (network.activation, network.slope, network.groups))

    def pool(x: str, stem_kind: str = 'imagenet') -> str:
        return emit('max_pool', x, output='maxpool', size=3, stride=2) if network.stem_kind == stem_kind else x

    x = conv(pool(INPUT, 'pool_first'), 'stem', 'conv', 'bn', 1 if network.stem_kind == 'cifar' else 2)
    # A rectifier that never falls commutes with the max-pool and goes before it, next to its convolution. A PReLU's
    # slope may be negative, so it stays after the pool.
    x = activation(pool(x), 0, 1) if kinds[0] == 'prelu' else pool(activation(x, 0, 1))
    for block, (place, shortcut) in enumerate(zip(network.block_names, network.block_shortcuts())):
        stride = 2 if block in network.stage_ends else 1
        if block:
            x = activation(x, block, 1)
        layers = ((1, 1), (stride, groups[block]), (1, 1)) if network.bottleneck else ((stride, 1), (1, 1))
        h = x
        for i, (layer_stride, layer_groups) in enumerate(layers, 1):
            if i > 1:
                h = activation(h, block, i)
            h = conv(h, place, f'conv{i}', f'bn{i}', layer_stride, layer_groups)
        beside = fold_shortcut(variables, place, shortcut)
        if beside and (shortcut == 'projection' or network.block_fades()[block]):
            x = convolution(x, place, 'shortcut_conv', *beside, stride)
        x = emit('add', h, x, output=f'{h.rpartition(".")[0]}.add') if beside else h
    head = {k: np.asarray(a, np.float32) for k, a in variables['params']['head'].items()}
    pooled = emit('average_pool', relu(x), output='avgpool')
    emit('dense', pooled, output=OUTPUT, kernel=head['kernel'], bias=head['bias'])
    return Graph(tuple(nodes), image_shape)


def fold_normalisation(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> Graph:
    """The graph that takes pixels 0..255 instead of (x / 255 - mean) / std, with no operation added.

    Only exact where it is allowed: the first convolution pads with zeros, which are normalised zeros
    (the mean's colour) before and black pixels after, so the mean must be zero or the padding none.

    Raises:
      UserError: where the result would differ; `normalisation_first` is the exact alternative.
    """
    at, first = next((at, node) for at, node in enumerate(graph.nodes) if node.op == 'conv')
    offset, scale = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if first.size > 1 and offset.any():
        raise UserError(
            f'the normalisation cannot be folded into the first convolution: it pads its input with zeros, and '
            f'mean={offset.tolist()} is not zero, so the borders would differ'
        )
    kernel, bias = first.weights
    bias = bias - (kernel * (offset / scale)[:, None]).sum((0, 1, 2))
    kernel = kernel / (255 * scale)[:, None]
    folded = replace(first, kernel=kernel.astype(np.float32), bias=bias.astype(np.float32))
    return replace(graph, nodes=(*graph.nodes[:at], folded, *graph.nodes[at + 1 :]))


def normalisation_first(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> Graph:
    """The graph that takes pixels 0..255, its normalisation a 1x1 convolution in front: always exact."""
    offset, scale = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    kernel = np.diag(1 / (255 * scale)).astype(np.float32)[None, None]
    return with_first(graph, Node('conv', (INPUT,), 'normalise', kernel, (-offset / scale).astype(np.float32)))
