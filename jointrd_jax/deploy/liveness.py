"""How much memory a graph's feature maps need while it runs, by liveness analysis.

A tensor is live from the node that makes it to the last that reads it. While a node runs, its inputs, its
output and whatever is live for later are in memory together. What a node may write into decides the rest:

    nothing     every node writes a new tensor
    in_place    activations (ReLU) and add write into an input that nobody reads afterwards
    accumulate  also, the convolution before an add writes onto the shortcut (out += conv(x))

Sizes are of one image in elements of `bytes_per_value`; weights and workspaces do not count.
"""

from typing import NamedTuple

import numpy as np

from jointrd_jax.deploy.graph import ACTIVATIONS, INPUT, Graph, Node, readers
from jointrd_jax.errors import choice_error

MODELS = ('nothing', 'in_place', 'accumulate')


class Moment(NamedTuple):
    """One node of the timeline: its output's name, all live bytes while it runs, those that a shortcut holds."""

    name: str
    live: int
    shortcut: int


def main_path(graph: Graph) -> set[str]:
    """Tensors on the way that a network without shortcuts has too: the first input of every node, backwards."""
    makers = {node.output: node for node in graph.nodes}
    name, path = graph.nodes[-1].output, set()
    while name in makers:
        path.add(name)
        name = makers[name].inputs[0]
    return path | {INPUT}


def fused(graph: Graph) -> tuple[Node, ...]:
    """The nodes, where a convolution whose output is only added to a shortcut is merged with that add into one node."""
    read, makers = readers(graph.nodes), {node.output: node for node in graph.nodes}
    swallowed: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op == 'add':
            maker = makers[node.inputs[0]]
            if maker.op == 'conv' and len(read[maker.output]) == 1:
                swallowed[node.output] = maker
    gone = {conv.output for conv in swallowed.values()}
    return tuple(
        Node('accumulate', (*swallowed[node.output].inputs, node.inputs[1]), node.output)
        if node.output in swallowed
        else node
        for node in graph.nodes
        if node.output not in gone
    )


def timeline(graph: Graph, model: str, bytes_per_value: int = 4) -> list[Moment]:
    """What is live while each node runs.

    Raises:
      UserError: `model` is none of `MODELS`.
    """
    if model not in MODELS:
        raise choice_error('memory model', model, MODELS)
    nodes = fused(graph) if model == 'accumulate' else graph.nodes
    sizes = {name: int(np.prod(shape)) * bytes_per_value for name, shape in graph.shapes().items()}
    last_read = {name: positions[-1] for name, positions in readers(nodes).items()}
    path = main_path(graph)
    live, moments = {INPUT}, []
    for position, node in enumerate(nodes):
        dying = {name for name in node.inputs if last_read[name] == position}
        writes_into = {
            **dict.fromkeys(ACTIVATIONS, node.inputs),
            'add': node.inputs,
            'accumulate': node.inputs[-1:],  # the shortcut
        }.get(node.op, ())
        reuses = model != 'nothing' and any(name in dying for name in writes_into)
        held = live | (set() if reuses else {node.output})
        waiting = {name for name in held - {node.output, *node.inputs} if last_read[name] > position}
        # A shortcut holds what is off the main path, and what waits on it for an add that is still to come.
        shortcut = {name for name in held if name not in path} | waiting
        moments.append(Moment(node.output, sum(sizes[n] for n in held), sum(sizes[n] for n in shortcut)))
        live = (live - dying) | {node.output}
    return moments


def peak(graph: Graph, model: str, bytes_per_value: int = 4) -> int:
    """The largest sum of live tensors, in bytes."""
    return max(moment.live for moment in timeline(graph, model, bytes_per_value))


def sum_of_maps(graph: Graph, bytes_per_value: int = 4) -> int:
    """Bytes of all feature maps together (activations counted as in place), as if none were ever freed.

    It is what a dataflow accelerator that gives every edge its own buffer needs, and, times the batch,
    about what training keeps.
    """
    shapes = graph.shapes()
    return (
        sum(int(np.prod(shapes[node.output])) for node in graph.nodes if node.op not in ACTIVATIONS) * bytes_per_value
    )
