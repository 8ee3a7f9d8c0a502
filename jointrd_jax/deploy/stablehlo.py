"""A graph as StableHLO: in jax.export's container, which JAX alone loads and runs, and as plain portable bytecode."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jointrd_jax.deploy.graph import Graph, apply

MAGIC = b'ML\xefR'  # of MLIR bytecode


@contextmanager
def without_paths() -> Iterator[None]:
    """While the body runs, lowered programs name their source files without this machine's directories."""
    name = 'jax_hlo_source_file_canonicalization_regex'
    before = getattr(jax.config, name)
    jax.config.update(name, '.*/')
    try:
        yield
    finally:
        jax.config.update(name, before)


def exported(graph: Graph, platform: str, rows: object) -> export.Exported:
    images = jax.ShapeDtypeStruct((rows, *graph.image_shape), np.float32)
    with without_paths():
        return export.export(jax.jit(lambda x: apply(graph, x)), platforms=[platform])(images)


def model(graph: Graph, platform: str, batch: int | None = None) -> bytes:
    """What `jax.export.deserialize` reads: float32 images [batch, H, W, C] to logits; None: any batch.

    Args:
      platform: 'cpu', 'cuda', 'rocm' or 'tpu'. One only: a file for several holds every convolution once for each.
    """
    return bytes(exported(graph, platform, batch or export.symbolic_shape('batch')[0]).serialize())


def portable(graph: Graph, platform: str, batch: int | None = None) -> bytes:
    """StableHLO's portable bytecode (an MLIR module with one function, main), which compilers such as IREE read.

    Its batch is fixed, None: 1, because these compilers want fixed shapes.
    """
    return bytes(exported(graph, platform, batch or 1).mlir_module_serialized)


def load_portable(bytecode: bytes) -> tuple[int, Callable[[np.ndarray], jax.Array]]:
    """The batch of a module that `portable` made, and a function that runs it on float32 images [batch, H, W, C].

    jax.export runs only its own container, so the module is put into one of the same signature.

    Raises:
      ValueError: `bytecode` is not such a module.
    """

    def container(images: tuple[int, ...], logits: tuple[int, ...]) -> export.Exported:
        same = jax.jit(lambda x: jnp.zeros(logits, np.float32) + x.sum())
        made = export.export(same, platforms=['cpu'])(jax.ShapeDtypeStruct(images, np.float32))
        return dataclasses.replace(made, mlir_module_serialized=bytecode)

    if not bytecode.startswith(MAGIC):
        raise ValueError('not a StableHLO module in portable bytecode')
    text = container((1,), (1,)).mlir_module()
    main = re.search(r'@main\(%\w+: tensor<([0-9x]+)xf32>.*?->.*?tensor<([0-9x]+)xf32>', text)
    if not main:
        raise ValueError('the module has no function main of one float32 tensor to one')
    images, logits = (tuple(map(int, shape.split('x'))) for shape in main.groups())
    return images[0], jax.jit(container(images, logits).call)
