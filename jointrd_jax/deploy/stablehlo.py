"""A graph as serialised StableHLO, which JAX alone loads and runs."""

import jax
import numpy as np
from jax import export

from jointrd_jax.deploy.graph import Graph, apply


def model(graph: Graph, platform: str, batch: int | None = None) -> bytes:
    """What `jax.export.deserialize` reads: float32 images [batch, H, W, C] to logits; None: any batch.

    Args:
      platform: 'cpu', 'cuda', 'rocm' or 'tpu'. One only: a file for several holds every convolution once for each.
    """
    rows = batch or export.symbolic_shape('batch')[0]
    images = jax.ShapeDtypeStruct((rows, *graph.image_shape), np.float32)
    return bytes(export.export(jax.jit(lambda x: apply(graph, x)), platforms=[platform])(images).serialize())
