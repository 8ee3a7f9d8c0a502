"""A graph as ONNX, written node by node: NCHW, no operator but the network's own."""

import json
from typing import Any

import numpy as np

from jointrd_jax.deploy.graph import INPUT, OUTPUT, Graph, Node
from jointrd_jax.errors import require

OPSET = 17
IR_VERSION = 8  # of the time of opset 17, so that runtimes of that age load the file
OPERATORS = {
    'conv': 'Conv', 'relu': 'Relu', 'max_pool': 'MaxPool', 'add': 'Add',
    'average_pool': 'GlobalAveragePool', 'dense': 'Gemm',
}  # fmt: skip


def model(graph: Graph, metadata: dict[str, Any], batch: int | None = None) -> bytes:
    """A serialised, checked ONNX model of images [batch, C, H, W]; a `batch` of None is left open.

    Args:
      metadata: JSON values that go into the file's metadata properties.
    """
    onnx = require('onnx', 'onnx')
    from onnx import checker, helper, numpy_helper, shape_inference

    nodes, weights = [], []

    def weight(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def emit(operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def window(node: Node) -> dict[str, list[int]]:
        return dict(kernel_shape=[node.size] * 2, strides=[node.stride] * 2, pads=[node.size // 2] * 4)

    for node in graph.nodes:
        operator = OPERATORS[node.op]
        inputs = list(node.inputs)
        if node.op == 'conv':
            kernel, bias = node.weights
            inputs += [weight(f'{node.output}.weight', kernel.transpose(3, 2, 0, 1))]
            inputs += [weight(f'{node.output}.bias', bias)]
            emit(operator, inputs, node.output, **window(node))
        elif node.op == 'max_pool':
            emit(operator, inputs, node.output, **window(node))
        elif node.op == 'dense':
            emit('Flatten', inputs, 'flatten', axis=1)
            kernel, bias = node.weights
            inputs = ['flatten', weight('fc.weight', kernel.T), weight('fc.bias', bias)]
            emit(operator, inputs, node.output, transB=1)
        else:
            emit(operator, inputs, node.output)

    height, width, channels = graph.image_shape
    rows = batch or 'batch'
    float32 = onnx.TensorProto.FLOAT
    images = helper.make_tensor_value_info(INPUT, float32, [rows, channels, height, width])
    logits = helper.make_tensor_value_info(OUTPUT, float32, [rows, graph.num_classes])
    made = helper.make_model(
        helper.make_graph(nodes, 'network', [images], [logits], weights),
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=IR_VERSION,
        producer_name='jointrd_jax',
    )
    helper.set_model_props(
        made, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    )
    made = shape_inference.infer_shapes(made, check_type=True, strict_mode=True, data_prop=True)
    checker.check_model(made, full_check=True)
    return made.SerializeToString()
