"""Intel's OpenVINO on this machine's CPU: accuracy, and latency against the baseline on one pinned thread."""

import sys
from collections.abc import Callable
from typing import Any, cast

TITLE = 'Intel CPUs, by OpenVINO'
PACKAGE, VERSION = 'openvino', '2026.4.1'
INSTALL = "pip install 'jointrd_jax[targets]'"
CONFIGURATIONS = {
    'float32': {'takes': 'onnx'},
    'int8-onnx': {'takes': 'int8'},
    'int8-tflite': {'takes': 'int8_tflite'},
}


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    import numpy as np

    sys.modules['openvino_telemetry'] = cast(Any, None)  # by which importing openvino reports to its makers
    import openvino

    core = openvino.Core()
    settings = {'INFERENCE_NUM_THREADS': 1, 'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}

    def load(path: str) -> Callable:
        model = core.read_model(path)
        height, width, channels = request['image_shape']
        is_onnx = path.endswith('.onnx')
        model.reshape([1, channels, height, width] if is_onnx else [1, height, width, channels])
        session = core.compile_model(model, 'CPU', settings).create_infer_request()
        entry, result = request['int8_input'], request['int8_output']

        def call(images: np.ndarray) -> np.ndarray:
            if is_onnx:
                return session.infer([np.ascontiguousarray(images.transpose(0, 3, 1, 2))])[0]
            logits = session.infer([worker.to_int8(images, entry)])[0]
            return (logits.astype(np.float32) - result['zero_point']) * result['scale']

        return call

    return {**worker.runtime_figures(request, load), 'time_kind': 'CPU time of one thread here'}
