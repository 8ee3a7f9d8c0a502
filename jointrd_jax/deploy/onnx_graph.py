"""A graph as ONNX, written node by node: NCHW, no operator but the network's own."""

import json
from typing import Any

import numpy as np

from jointrd_jax.deploy.graph import INPUT, OUTPUT, Graph, Node
from jointrd_jax.errors import require

OPSET = 17
OPSETS = 13, 25  # the oldest and newest that can be asked for: the operators used mean the same in all of them
OPERATORS = {
    'conv': 'Conv', 'relu': 'Relu', 'leaky_relu': 'LeakyRelu', 'prelu': 'PRelu', 'max_pool': 'MaxPool', 'add': 'Add',
    'average_pool': 'GlobalAveragePool', 'dense': 'Gemm',
}  # fmt: skip


def model(graph: Graph, metadata: dict[str, Any], batch: int | None = None, opset: int = OPSET) -> bytes:
    """A serialised, checked ONNX model of images [batch, C, H, W]; a `batch` of None is left open.

    Every attribute is written, also where the standard has a default: not all readers know the defaults.

    Args:
      metadata: JSON values that go into the file's metadata properties.
      opset: version of the operator set, within `OPSETS`.
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
        sizes = dict(kernel_shape=[node.size] * 2, strides=[node.stride] * 2, pads=[node.size // 2] * 4)
        return dict(sizes, dilations=[1, 1])

    for node in graph.nodes:
        operator = OPERATORS[node.op]
        inputs = list(node.inputs)
        if node.op == 'conv':
            kernel, bias = node.weights
            inputs += [weight(f'{node.output}.weight', kernel.transpose(3, 2, 0, 1))]
            inputs += [weight(f'{node.output}.bias', bias)]
            emit(operator, inputs, node.output, group=node.groups, **window(node))
        elif node.op == 'max_pool':
            emit(operator, inputs, node.output, ceil_mode=0, storage_order=0, **window(node))
        elif node.op == 'leaky_relu':
            emit(operator, inputs, node.output, alpha=float(node.slopes))
        elif node.op == 'prelu':
            inputs += [weight(f'{node.output}.slope', node.slopes.reshape(-1, 1, 1))]
            emit(operator, inputs, node.output)
        elif node.op == 'dense':
            emit('Flatten', inputs, 'flatten', axis=1)
            kernel, bias = node.weights
            inputs = ['flatten', weight('fc.weight', kernel.T), weight('fc.bias', bias)]
            emit(operator, inputs, node.output, alpha=1.0, beta=1.0, transA=0, transB=1)
        else:
            emit(operator, inputs, node.output)

    height, width, channels = graph.image_shape
    rows = batch or 'batch'
    float32 = onnx.TensorProto.FLOAT
    images = helper.make_tensor_value_info(INPUT, float32, [rows, channels, height, width])
    logits = helper.make_tensor_value_info(OUTPUT, float32, [rows, graph.num_classes])
    made = helper.make_model(
        helper.make_graph(nodes, 'network', [images], [logits], weights),
        opset_imports=[helper.make_opsetid('', opset)],
        # The one of the opset's time, so that runtimes of that age load the file.
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid('', opset)]),
        producer_name='jointrd_jax',
    )
    helper.set_model_props(
        made, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    )
    made = shape_inference.infer_shapes(made, check_type=True, strict_mode=True, data_prop=True)
    checker.check_model(made, full_check=True)
    return made.SerializeToString()
