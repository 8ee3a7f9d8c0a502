"""What is deployed: a network as a list of convolutions, activations, additions, poolings and one matrix product.

A graph has no training state left in it. Exporters write it out, `apply` runs it in JAX, and the
deployment report counts it. Feature maps are NHWC and kernels HWIO; exporters transpose what they must.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INPUT, OUTPUT = 'images', 'logits'
ACTIVATIONS = ('relu', 'leaky_relu', 'prelu')  # elementwise: a runtime may compute them in place


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: 'conv', one of `ACTIVATIONS`, 'max_pool', 'add', 'average_pool' (global) or 'dense'."""

    op: str
    inputs: tuple[str, ...]
    output: str
    kernel: np.ndarray | None = None  # conv: [h, w, in, out]; dense: [in, out]
    bias: np.ndarray | None = None  # [out]
    size: int = 1  # of the window of conv and max_pool, which pad by size // 2 on every side
    stride: int = 1
    groups: int = 1  # of conv, whose kernel is [h, w, in / groups, out] then
    slope: np.ndarray | None = None  # below zero; leaky_relu: [], prelu: [channels]

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias of a conv or dense node; TypeError for others."""
        if self.kernel is None or self.bias is None:
            raise TypeError(f'{self.output} ({self.op}) has no weights')
        return self.kernel, self.bias

    @property
    def slopes(self) -> np.ndarray:
        """`slope` of a leaky_relu or prelu node; TypeError for others."""
        if self.slope is None:
            raise TypeError(f'{self.output} ({self.op}) has no slope')
        return self.slope


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in the order in which they run; the first reads `INPUT`, the last makes `OUTPUT`.

    Attributes:
      image_shape: (H, W, C) of one input image.
    """

    nodes: tuple[Node, ...]
    image_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        return self.nodes[-1].weights[0].shape[1]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor for one image, without the batch: [H, W, C], or [C] from the pooling on."""
        shapes: dict[str, tuple[int, ...]] = {INPUT: self.image_shape}
        for node in self.nodes:
            shape = shapes[node.inputs[0]]
            if node.op in ('conv', 'max_pool'):
                channels = node.weights[0].shape[-1] if node.op == 'conv' else shape[-1]
                shape = (*((n + 2 * (node.size // 2) - node.size) // node.stride + 1 for n in shape[:2]), channels)
            elif node.op == 'average_pool':
                shape = shape[-1:]
            elif node.op == 'dense':
                shape = node.weights[0].shape[1:]
            shapes[node.output] = shape
        return shapes

    def parameters(self) -> int:
        """Numbers in kernels, biases and slopes that a PReLU has learnt."""
        return sum(
            a.size
            for node in self.nodes
            for a in (node.kernel, node.bias, node.slope if node.op == 'prelu' else None)
            if a is not None
        )

    def macs(self) -> int:
        """Multiply-accumulates of convolutions and matrix product for one image."""
        shapes = self.shapes()
        return sum(
            node.kernel.size * int(np.prod(shapes[node.output][:-1])) for node in self.nodes if node.kernel is not None
        )

    def operators(self) -> dict[str, int]:
        """How many nodes of each op there are."""
        ops = [node.op for node in self.nodes]
        return {op: ops.count(op) for op in dict.fromkeys(ops)}


def window(node: Node) -> list[tuple[int, int]]:
    return [(node.size // 2, node.size // 2)] * 2


def bias_like(node: Node) -> np.ndarray:
    """The bias with a batch (and, of a convolution, height and width) to broadcast over."""
    kernel, bias = node.weights
    return np.expand_dims(bias, tuple(range(kernel.ndim - 1)))


def conv(node: Node, x: jax.Array) -> jax.Array:
    strides, layout = (node.stride, node.stride), ('NHWC', 'HWIO', 'NHWC')
    kernel = jnp.asarray(node.weights[0])
    y = jax.lax.conv_general_dilated(
        x, kernel, strides, window(node), dimension_numbers=layout, feature_group_count=node.groups
    )
    return y + bias_like(node)


def max_pool(node: Node, x: jax.Array) -> jax.Array:
    size, strides = (1, node.size, node.size, 1), (1, node.stride, node.stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, strides, [(0, 0), *window(node), (0, 0)])


def slope_like(node: Node, x: jax.Array) -> jax.Array:
    """The slope with a batch (and, of a feature map, height and width) to broadcast over."""
    return jnp.asarray(node.slope, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def leaky(node: Node, x: jax.Array) -> jax.Array:
    return jnp.where(x >= 0, x, slope_like(node, x) * x)


Forms = dict[str, Callable[..., jax.Array]]
COMPUTE: Forms = {
    'conv': conv,
    'relu': lambda node, x: jnp.maximum(x, 0),
    'leaky_relu': leaky,
    'prelu': leaky,
    'max_pool': max_pool,
    'add': lambda node, x, y: x + y,
    'average_pool': lambda node, x: x.mean((1, 2)),
    'dense': lambda node, x: x @ node.kernel + bias_like(node),
}


def apply(graph: Graph, images: jax.Array, forms: Forms = COMPUTE) -> jax.Array:
    """Images [B, H, W, C] to logits [B, classes]; `forms` says how each op is computed."""
    values: dict[str, Any] = {INPUT: images}
    for node in graph.nodes:
        values[node.output] = forms[node.op](node, *(values[name] for name in node.inputs))
    return values[OUTPUT]


def with_first(graph: Graph, node: Node) -> Graph:
    """The graph with `node`, which reads `INPUT`, in front."""
    renamed = [
        replace(n, inputs=tuple(node.output if name == INPUT else name for name in n.inputs)) for n in graph.nodes
    ]
    return replace(graph, nodes=(node, *renamed))


def readers(nodes: Sequence[Node]) -> dict[str, list[int]]:
    """Positions of the nodes that read each tensor, ascending."""
    found: dict[str, list[int]] = {}
    for position, node in enumerate(nodes):
        for name in node.inputs:
            found.setdefault(name, []).append(position)
    return found
