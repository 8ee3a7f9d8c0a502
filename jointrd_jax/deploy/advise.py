"""Which shortcuts are worth removing: the fewest blocks that must be plain for feature maps to fit, by liveness.

A shortcut's map is kept only while its own block runs. So the network's peak is the largest of its blocks' peaks, each
of which depends on that block's shortcut alone, and the blocks that must be plain are exactly those that would not fit
with their shortcut.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from jointrd_jax.deploy import liveness
from jointrd_jax.deploy.graph import Graph, readers
from jointrd_jax.errors import UserError

Model = tuple[str, int]  # the liveness model's name, and bytes per value


class Advice(NamedTuple):
    """The fewest blocks to make plain.

    Attributes:
      plain: their numbers, from 0.
      shortcuts: the choice of every block, as config.model.shortcuts takes it.
      graph: the network so made.
      peak, full, least: bytes of feature maps with that choice, with every shortcut, with none.
    """

    plain: tuple[int, ...]
    shortcuts: str
    graph: Graph
    peak: int
    full: int
    least: int


def without(graph: Graph, blocks: Iterable[int]) -> Graph:
    """`graph`, a ResNet's, with these blocks' shortcuts (and their projections) gone."""
    nodes = list(graph.nodes)
    adds = [node for node in nodes if node.op == 'add']
    for block in blocks:
        add = adds[block]
        kept, shortcut = add.inputs
        nodes.remove(add)
        makers = {node.output: node for node in nodes}
        if shortcut in makers and makers[shortcut].op == 'conv' and shortcut not in readers(nodes):
            nodes.remove(makers[shortcut])
        nodes = [
            replace(node, inputs=tuple(kept if name == add.output else name for name in node.inputs)) for node in nodes
        ]
        adds = [next((n for n in nodes if n.output == a.output and n.op == 'add'), a) for a in adds]
    return replace(graph, nodes=tuple(nodes))


def advise(graph: Graph, model: Model, budget: int | None = None) -> Advice:
    """The fewest blocks of a ResNet to make plain for its feature maps to need at most `budget` bytes.

    Args:
      graph: with a shortcut in every block.
      budget: None: as little as any choice of shortcuts reaches.

    Raises:
      UserError: not even the network without shortcuts fits; the message says where it peaks.
    """
    count = graph.operators().get('add', 0)
    everything = range(count)
    bare = without(graph, everything)
    least, full = liveness.peak(bare, *model), liveness.peak(graph, *model)
    budget = least if budget is None else budget
    if budget < least:
        worst = max(liveness.timeline(bare, *model), key=lambda moment: moment.live)
        raise UserError(
            f'no choice of shortcuts fits: without any, feature maps still need {least / 1024:.0f} KiB '
            f'(at {worst.name}), the budget is {budget / 1024:.0f} KiB; take fewer channels, smaller images or another '
            'stem'
        )
    plain = tuple(
        block
        for block in everything
        if liveness.peak(without(graph, [other for other in everything if other != block]), *model) > budget
    )
    chosen = without(graph, plain)
    shortcuts = ','.join('none' if block in plain else 'all' for block in everything)
    return Advice(plain, shortcuts, chosen, liveness.peak(chosen, *model), full, least)


def steps(graph: Graph, model: Model) -> list[Advice]:
    """The advice for every peak that some number of plain blocks reaches, from the ResNet's down to the least."""
    found = [advise(graph, model, liveness.peak(graph, *model))]
    least = found[0].least
    while found[-1].peak > least:
        found.append(advise(graph, model, found[-1].peak - 1))
    return found
