"""A trained network folded for deployment: BatchNorm and Dirac disappear into convolutions and biases.

    scale * (conv(x, W) - mean) / sqrt(var + eps) + bias  =  conv(x, W * f) + (bias - mean * f),
    f = scale / sqrt(var + eps),  and W = alpha * identity + beta * W' where Dirac-parametrised

per output channel, computed in float64 and rounded once.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jointrd_jax.deploy.graph import INPUT, OUTPUT, Graph, Node, with_first
from jointrd_jax.errors import UserError
from jointrd_jax.method.networks import BatchNorm, Network, Variables
from jointrd_jax.runs.torch_names import torch_module


def fold_conv(variables: Variables, place: str, conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [h, w, in, out] and bias [out] of a convolution with the BatchNorm behind it, in float64."""
    weights, norm_weights = ({k: np.asarray(a, np.float64) for k, a in variables['params'][place][layer].items()}
                             for layer in (conv, norm))  # fmt: skip
    stats = {k: np.asarray(a, np.float64) for k, a in variables['batch_stats'][place][norm].items()}
    kernel = weights['kernel']
    if 'alpha' in weights:
        kernel = weights['beta'] * kernel
        centre = kernel[kernel.shape[0] // 2, kernel.shape[1] // 2]
        centre += weights['alpha'] * np.eye(*centre.shape)
    factor = norm_weights['scale'] / np.sqrt(stats['var'] + BatchNorm.epsilon)
    return kernel * factor, norm_weights['bias'] - stats['mean'] * factor


def fold(network: Network, variables: Variables, image_shape: tuple[int, int, int]) -> Graph:
    """The graph that computes `network.apply(variables, images).logits` for images of `image_shape`.

    Tensors are named by the PyTorch module that makes them (`layer1.0.conv1`, `layer1.0.conv1.relu`).
    """
    nodes: list[Node] = []

    def emit(op: str, *inputs: str, output: str, **attributes) -> str:
        nodes.append(Node(op, inputs, output, **attributes))
        return output

    def conv(x: str, place: str, layer: str, norm: str, stride: int) -> str:
        kernel, bias = (a.astype(np.float32) for a in fold_conv(variables, place, layer, norm))
        name = torch_module((place, layer), 'torchvision')
        return emit('conv', x, output=name, kernel=kernel, bias=bias, size=kernel.shape[0], stride=stride)

    def relu(x: str) -> str:
        return emit('relu', x, output=f'{x}.relu')

    imagenet = network.stem_kind == 'imagenet'
    x = relu(conv(INPUT, 'stem', 'conv', 'bn', 2 if imagenet else 1))
    if imagenet:  # the ReLU goes first, beside its convolution: the two commute
        x = emit('max_pool', x, output='maxpool', size=3, stride=2)
    for block, (place, shortcut) in enumerate(zip(network.block_names, network.block_shortcuts())):
        stride = 2 if block in network.stage_ends else 1
        if block:
            x = relu(x)
        strides = (1, stride, 1) if network.bottleneck else (stride, 1)
        h = x
        for i, layer_stride in enumerate(strides, 1):
            h = conv(h, place, f'conv{i}', f'bn{i}', layer_stride)
            if i < len(strides):
                h = relu(h)
        if shortcut == 'projection':
            x = conv(x, place, 'shortcut_conv', 'shortcut_bn', stride)
        x = h if shortcut == 'none' else emit('add', h, x, output=f'{h.rpartition(".")[0]}.add')
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
    first = graph.nodes[0]
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
    return replace(graph, nodes=(folded, *graph.nodes[1:]))


def normalisation_first(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> Graph:
    """The graph that takes pixels 0..255, its normalisation a 1x1 convolution in front: always exact."""
    offset, scale = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    kernel = np.diag(1 / (255 * scale)).astype(np.float32)[None, None]
    return with_first(graph, Node('conv', (INPUT,), 'normalise', kernel, (-offset / scale).astype(np.float32)))
