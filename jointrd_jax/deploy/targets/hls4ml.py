"""FPGAs, by hls4ml after qonnx: what the dataflow design consists of; its C++ is written, no synthesis is run.

In a dataflow design every edge is a stream with a FIFO, every shortcut a clone of a stream and a merge of two.
"""

import collections
import contextlib
import io
from pathlib import Path
from typing import Any

TITLE = 'FPGAs, by hls4ml'
PACKAGE, VERSION = 'hls4ml', '1.3.0'
INSTALL = 'into an environment of its own: pip install hls4ml==1.3.0 qonnx==1.0.0; --python hls4ml=VENV/bin/python'
CONFIGURATIONS = {'vitis-stream': {'takes': 'onnx'}}


def fixed_batch(path: str, directory: str, image_shape: list[int]) -> str:
    """The path of a copy of the model with batch size 1, which qonnx needs."""
    import onnx
    from onnx.tools import update_model_dims

    height, width, channels = image_shape
    model = onnx.load(path)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    del model.graph.value_info[:]
    made = update_model_dims.update_inputs_outputs_dims(
        model, {'images': [1, channels, height, width]}, {'logits': [1, classes]}
    )
    target = Path(directory) / 'network.onnx'
    onnx.save(made, target)
    return str(target)


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        import hls4ml
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
        from qonnx.transformation.gemm_to_matmul import GemmToMatMul
        from qonnx.util.cleanup import cleanup_model

        model = ModelWrapper(fixed_batch(request['artifact'], request['directory'], request['image_shape']))
        model = cleanup_model(model).transform(ConvertToChannelsLastAndClean()).transform(GemmToMatMul())
        model = cleanup_model(model)
        settings = hls4ml.utils.config_from_onnx_model(
            model, granularity='name', default_precision='fixed<16,6>', backend='Vitis'
        )
        settings['Model']['Strategy'] = 'Resource'
        for layer in settings['LayerName'].values():
            layer['Strategy'] = 'Resource'
        design = hls4ml.converters.convert_from_onnx_model(
            model,
            output_dir=f'{request["directory"]}/design',
            io_type='io_stream',
            backend='Vitis',
            hls_config=settings,
        )
        design.write()
    layers = list(design.get_layers())
    kinds = collections.Counter(type(layer).__name__.removeprefix('Vitis') for layer in layers)
    depths = [
        variable.pragma[1]
        for layer in layers
        for variable in layer.variables.values()
        if isinstance(getattr(variable, 'pragma', None), tuple) and variable.pragma[0] == 'stream'
    ]
    clones = sum(count for kind, count in kinds.items() if 'Clone' in kind)
    merges = sum(count for kind, count in kinds.items() if 'Merge' in kind)
    return {
        'note': f'{len(depths)} FIFOs, {clones} clones, {merges} merges',
        'parts': {'fifos': len(depths), 'fifo depths': sum(depths), 'clones': clones, 'merges': merges},
    }
