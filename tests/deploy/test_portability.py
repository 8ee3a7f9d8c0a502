"""What other tools trip over in exported files: each of these broke one of them, most without a word."""

import numpy as np
import pytest

from jointrd_jax.deploy import fold as folding, graph, onnx_graph, quantise, runner, stablehlo, tflite
from jointrd_jax.deploy.graph import Graph, Node
from jointrd_jax.method.networks import Network
from tests.support.networks import images_like, randomised, relative_difference

# What a reader needs that knows no defaults (hls4ml and qonnx stop without `dilations`); auto_pad excludes pads.
LEFT_OUT = {'auto_pad', 'output_shape', 'output_padding'}


def folded(network, image_shape):
    return folding.fold(network, randomised(network, image_shape), image_shape)


def with_activation(op, slope):
    """Convolution, activation, max-pool with padding, activation, pooling and head, on images of 9 x 8 pixels."""
    rng = np.random.default_rng(0)

    def conv(x, name, inputs):
        kernel = rng.normal(0, 0.5, (3, 3, inputs, 6)).astype(np.float32)
        return Node('conv', (x,), name, kernel, rng.normal(-1, 1, 6).astype(np.float32), size=3)

    # The pool comes first where the activation may fall.
    first = [Node(op, ('c1',), 'a1', slope=slope), Node('max_pool', ('a1',), 'pool', size=3, stride=2)]
    if op == 'prelu':
        first = [Node('max_pool', ('c1',), 'a1', size=3, stride=2), Node(op, ('a1',), 'pool', slope=slope)]
    nodes = (
        conv('images', 'c1', 2),
        *first,
        conv('pool', 'c2', 6),
        Node(op, ('c2',), 'a2', slope=slope),
        Node('average_pool', ('a2',), 'avgpool'),
        Node('dense', ('avgpool',), 'logits', rng.normal(0, 1, (6, 4)).astype(np.float32), np.zeros(4, np.float32)),
    )
    return Graph(nodes, (9, 8, 2))


ACTIVATIONS = {
    'relu': with_activation('relu', None),
    'leaky_relu': with_activation('leaky_relu', np.float32(0.3)),
    'prelu': with_activation('prelu', np.linspace(-0.5, 1.5, 6).astype(np.float32)),  # above 1 too: they are learnt
}


def in_tflite_micro(blob, images):
    """Logits of images [B, H, W, C] by TFLite-Micro's own interpreter."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter, logits = runtime.Interpreter.from_bytes(blob, arena_size=4 << 20), []
    entry, result = interpreter.get_input_details(0), interpreter.get_output_details(0)
    for end in (entry, result):
        held = end['quantization_parameters']
        end['quantization'] = (held['scales'][0], held['zero_points'][0]) if len(held['scales']) else (0, 0)
    for image in images:
        interpreter.set_input(runner.to_int8(image[None], entry), 0)
        interpreter.invoke()
        logits.append(runner.from_int8(np.array(interpreter.get_output(0)), result))
    return np.concatenate(logits)


def int8(made, images):
    return quantise.tflite_model(tflite.converted(made), [image[None] for image in images])


def unused_tensors(blob):
    (part,) = tflite.flatbuffer_schema().ModelT.InitFromPackedBuf(blob, 0).subgraphs
    used = {tensor for holder in (part, *part.operators) for ends in (holder.inputs, holder.outputs) for tensor in ends}
    return set(range(len(part.tensors))) - used


def test_large_buffers_of_an_int8_file_lie_inside_it():
    images = images_like((8, 8, 1), 8)
    made = folded(Network((1, 1), width=64, num_classes=10, stem_kind='cifar', shortcuts='none'), (8, 8, 1))
    blob = int8(made, images)
    assert len(blob) > 256 * 1024  # where the quantiser begins to put them behind it
    found = in_tflite_micro(blob, images)
    assert relative_difference(found, np.asarray(graph.apply(made, images))) < 0.1
    assert (found.argmax(1) == np.asarray(graph.apply(made, images)).argmax(1)).mean() > 0.8


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_every_activation_runs_in_every_export(name, tmp_path):
    made, images = ACTIVATIONS[name], images_like((9, 8, 2), 5)
    wanted = np.asarray(graph.apply(made, images))
    blobs = {
        'n.onnx': onnx_graph.model(made, {}),
        'n.tflite': tflite.model(made),
        'n.stablehlo': stablehlo.model(made, 'cpu'),
        'n.mlirbc': stablehlo.portable(made, 'cpu', 2),
    }
    for file, blob in blobs.items():
        (tmp_path / file).write_bytes(blob)
        run = runner.LOADERS[(tmp_path / file).suffix](str(tmp_path / file))
        assert relative_difference(run(images), wanted) < 1e-5, file
    assert relative_difference(in_tflite_micro(blobs['n.tflite'], images), wanted) < 1e-5
    quantised = int8(made, images)
    assert relative_difference(in_tflite_micro(quantised, images), wanted) < 0.05
    for blob in (blobs['n.tflite'], quantised):
        operators = tflite.operators(blob)
        assert 'PADV2' not in operators
        assert operators.count('PRELU') == (0 if name == 'relu' else 2)
        assert not {'SELECT', 'SELECT_V2', 'MUL', 'ADD'} & set(operators)
        assert not unused_tensors(blob)  # TFLite-Micro gives each a place in its arena


def test_an_imagenet_stem_runs_in_tflite_micro():
    made, images = folded(Network((1, 1), width=4, num_classes=3), (40, 48, 3)), images_like((40, 48, 3), 2)
    wanted = np.asarray(graph.apply(made, images))
    assert relative_difference(in_tflite_micro(tflite.model(made), images), wanted) < 1e-5
    assert relative_difference(in_tflite_micro(int8(made, images), images), wanted) < 0.1


@pytest.mark.parametrize('opset', [onnx_graph.OPSETS[0], onnx_graph.OPSET, onnx_graph.OPSETS[1]])
def test_onnx_writes_every_attribute_at_every_opset(opset):
    import onnx
    import onnxruntime

    imagenet = folded(Network((1, 1), True, 4, 3), (32, 32, 3))
    for made in (imagenet, *ACTIVATIONS.values()):
        blob = onnx_graph.model(made, {}, 2, opset)
        model = onnx.load_from_string(blob)
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == opset
        for node in model.graph.node:
            known = onnx.defs.get_schema(node.op_type, opset).attributes
            assert {a.name for a in node.attribute} == known.keys() - LEFT_OUT, node.op_type
        images = images_like(made.image_shape, 2)
        found = onnxruntime.InferenceSession(blob).run(None, {'images': images.transpose(0, 3, 1, 2)})[0]
        assert relative_difference(found, np.asarray(graph.apply(made, images))) < 1e-5


def test_portable_bytecode_is_of_fixed_shape_and_holds_no_custom_calls():
    made = folded(Network((1,), width=4, num_classes=3), (32, 32, 3))
    blob = stablehlo.portable(made, 'cpu')
    assert blob.startswith(b'ML\xefR')  # MLIR bytecode
    assert b'StableHLO_v' in blob[:32]
    rows, call = stablehlo.load_portable(blob)
    images = images_like((32, 32, 3), 1)
    assert rows == 1
    assert relative_difference(np.asarray(call(images)), np.asarray(graph.apply(made, images))) < 1e-5
    with pytest.raises(ValueError, match='not a StableHLO module'):
        stablehlo.load_portable(b'something else')
