"""int8, calibrated on training images: ONNX by ONNX Runtime (QDQ), TFLite by ai-edge-quantizer."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jointrd_jax.deploy import tflite
from jointrd_jax.deploy.graph import INPUT
from jointrd_jax.errors import require
from jointrd_jax.system import files

PINNED = {'ai-edge-quantizer': '0.10.0', **tflite.PINNED}  # its ranges are set through parts of it that may change


def check_tflite_installed() -> None:
    """Check that the extra [npu] is installed.

    Raises:
      UserError: missing, or another version.
    """
    tflite.check_installed(PINNED, 'npu')


def onnx_model(float_model: bytes, batches: Sequence[np.ndarray]) -> bytes:
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

    with files.temporary_directory() as directory:
        source, target = directory / 'float.onnx', directory / 'int8.onnx'
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


def tflite_model(float_model: bytes, batches: Sequence[np.ndarray], metadata: dict[str, Any] | None = None) -> bytes:
    """The full-integer version of what `tflite.converted` makes: int8 in and out.

    Weights per channel, feature maps per tensor, their ranges the true minima and maxima over the images: the
    quantiser's moving average clips more (worst logit error on the digits 0.44 against 0.13).

    Args:
      batches: training images [B, H, W, C], B as the model takes them.
      metadata: JSON values for the file's metadata; the scales of input and output are added.
    """
    check_tflite_installed()
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    signature, tensors = next(iter(interpreter(float_model).get_signature_list().items()))
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(recipe.static_wi8_ai8())
    with quiet():
        ranges = calibrator.Calibrator(float_model, qsv_update_func=qsv_utils.min_max_update)
        ranges.calibrate({signature: [{tensors['inputs'][0]: images} for images in batches]}, rules)
        made = quantizer.Quantizer(float_model, recipe.static_wi8_ai8()).quantize(ranges.get_model_qsvs())
    raw = bytes(made.quantized_model or b'')
    return tflite.packed(raw, {**(metadata or {}), **scales(raw)})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While the body runs, hide the quantiser's progress bar, its sizes and its warning about calibration's memory."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*experimental_preserve_all_tensors')
            yield


def interpreter(blob: bytes) -> Any:
    """LiteRT's interpreter, to read a model's tensors from; without XNNPACK, which would print a line."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return Interpreter(model_content=blob, experimental_op_resolver_type=plain)


def scales(int8_model: bytes) -> dict[str, Any]:
    """{'int8_input': {'scale', 'zero_point'}, 'int8_output': ...}: value = scale * (int8 - zero_point)."""
    loaded = interpreter(int8_model)
    ends = loaded.get_input_details()[0], loaded.get_output_details()[0]
    return {
        f'int8_{name}': dict(zip(('scale', 'zero_point'), map(float, end['quantization'])))
        for name, end in zip(('input', 'output'), ends)
    }
