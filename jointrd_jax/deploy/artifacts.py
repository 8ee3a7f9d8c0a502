"""The kinds of files that a network is deployed as, and how they are made of its folded graph.

A new kind is a row of `KINDS` and a line of `made`; its loader is in `runner.LOADERS` (by the ending of the file), the
code that a reader of the model card needs in `card.FEED`. One that is not made of the graph is written by
`export.ExportJob.write`.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from jointrd_jax.deploy import onnx_graph, quantise, stablehlo, tflite
from jointrd_jax.deploy.graph import Graph


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
      format: what a user asks for; some formats are several files.
      file: its name in an export.
      runtime: the distribution that runs it when it is verified.
      is_int8: whether it is quantised, and so need not compute what the checkpoint does.
      from_graph: whether it holds the folded graph, which may take pixels; else the network's weights.
    """

    format: str
    file: str
    runtime: str
    is_int8: bool = False
    from_graph: bool = True


ONNX, INT8, TFLITE, INT8_TFLITE = 'onnx', 'int8', 'tflite', 'int8_tflite'
STABLEHLO, PORTABLE, SAFETENSORS = 'stablehlo', 'portable', 'safetensors'
KINDS = {
    ONNX: Kind('onnx', 'network.onnx', 'onnxruntime'),
    INT8: Kind('onnx', 'network.int8.onnx', 'onnxruntime', is_int8=True),
    TFLITE: Kind('tflite', 'network.tflite', 'ai-edge-litert'),
    INT8_TFLITE: Kind('tflite', 'network.int8.tflite', 'ai-edge-litert', is_int8=True),
    STABLEHLO: Kind('stablehlo', 'network.stablehlo', 'jax'),
    PORTABLE: Kind('stablehlo', 'network.mlirbc', 'jax'),
    SAFETENSORS: Kind('safetensors', 'network.safetensors', 'jax', from_graph=False),
}
FORMATS = tuple(dict.fromkeys(kind.format for kind in KINDS.values()))
QUANTISED = tuple(dict.fromkeys(kind.format for kind in KINDS.values() if kind.is_int8))


def of_formats(formats: Collection[str], int8: bool) -> tuple[str, ...]:
    """The kinds of these formats; the quantised ones only with `int8`."""
    return tuple(name for name, kind in KINDS.items() if kind.format in formats and (int8 or not kind.is_int8))


def made(
    graph: Graph,
    kinds: Collection[str],
    calibration: Callable[[], list[np.ndarray]],
    metadata: dict[str, Any] | None = None,
    batch: int | None = None,
    platform: str = 'cpu',
    opset: int = onnx_graph.OPSET,
) -> Iterator[tuple[str, bytes]]:
    """The content of each kind of file that is made of a graph, one after another.

    Args:
      calibration: gives images [B, H, W, C] as the graph takes them, in batches, for the int8 scales.
      metadata: written into ONNX and TFLite files.
      batch: images per call; None: any number.
      platform: that the StableHLO files are for.
      opset: of the ONNX model.
    """
    metadata = metadata or {}
    if {ONNX, INT8} & set(kinds):
        float_model = onnx_graph.model(graph, metadata, batch, opset)
        if ONNX in kinds:
            yield ONNX, float_model
        if INT8 in kinds:
            images = [np.ascontiguousarray(part.transpose(0, 3, 1, 2)) for part in calibration()]
            yield INT8, quantise.onnx_model(float_model, images)
    if {TFLITE, INT8_TFLITE} & set(kinds):
        float_model = tflite.converted(graph, batch)
        if TFLITE in kinds:
            yield TFLITE, tflite.packed(float_model, metadata)
        if INT8_TFLITE in kinds:
            size = batch or 1
            images = [part[i : i + size] for part in calibration() for i in range(0, len(part), size)]
            yield INT8_TFLITE, quantise.tflite_model(float_model, images, metadata)
    if STABLEHLO in kinds:
        yield STABLEHLO, stablehlo.model(graph, platform, batch)
    if PORTABLE in kinds:
        yield PORTABLE, stablehlo.portable(graph, platform, batch)
