"""int8: ONNX Runtime's static quantisation (QDQ), calibrated on training images."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jointrd_jax.deploy.graph import INPUT
from jointrd_jax.errors import require


def model(float_model: bytes, batches: Sequence[np.ndarray]) -> bytes:
    """The int8 version of an ONNX model: weights per channel, feature maps per tensor.

    Args:
      batches: training images [B, C, H, W] as the model takes them; their ranges become the scales.
    """
    require('onnxruntime', 'onnx')
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.rest, None)
            return None if images is None else {INPUT: images}

    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / 'float.onnx', Path(directory) / 'int8.onnx'
        source.write_bytes(float_model)
        logging.getLogger().addFilter(quiet := lambda record: 'pre-process' not in record.getMessage())
        try:
            quantization.quantize_static(
                source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
                activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        finally:
            logging.getLogger().removeFilter(quiet)
        return target.read_bytes()
