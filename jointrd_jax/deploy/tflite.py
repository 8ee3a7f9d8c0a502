"""A graph as TFLite, by litert-converter from StableHLO.

The converter is young: its version is pinned exactly and it runs in a process of its own, where a crash
of its native code becomes an error here. It is given bytecode of the lowered module; it segfaults on
jax.export's serialisation.
"""

import importlib
import importlib.metadata
import io
import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jointrd_jax.deploy.graph import COMPUTE, INPUT, OUTPUT, Graph, Node, apply, window
from jointrd_jax.deploy.stablehlo import without_paths
from jointrd_jax.errors import UserError, require
from jointrd_jax.system import files

PINNED = {'litert-converter': '0.5.0', 'ai-edge-litert': '2.3.0'}
METADATA = 'jointrd_jax'  # the name of our entry in the file's metadata

CONVERTER = f"""
import sys
from litert_converter import converter_api_ext as api
from litert_converter.mlir import ir, passmanager

context = ir.Context()
api.prepare_mlir_context(context)
with context, ir.Location.unknown():
    module = ir.Module.parse(open(sys.argv[1], 'rb').read())
    api.set_signature(module.operation, 'serving_default', ['{INPUT}'], ['{OUTPUT}'])
    passes = passmanager.PassManager()
    api.run_convert_to_tfl_passes(module, passes, api.ConvertToTFLConfig())
    passes.run(module.operation)
    open(sys.argv[2], 'wb').write(api.export_flatbuffer_to_bytes(module.operation))
"""


def check_installed(pinned: dict[str, str] = PINNED, extra: str = 'tflite') -> None:
    """Check that the packages of an extra are installed, in exactly the versions that are known to work.

    Raises:
      UserError: missing, or another version.
    """
    for package, wanted in pinned.items():
        require(package.replace('-', '_'), extra)
        if (found := importlib.metadata.version(package)) != wanted:
            raise UserError(f"{package} {found} is installed, {wanted} is needed: pip install 'jointrd_jax[{extra}]'")


def max_pool(node: Node, x: jax.Array) -> jax.Array:
    """Max-pool padded with zeros, which is correct after a ReLU; `with_own_operators` corrects it elsewhere.

    Padding with minus infinity would become PADV2, which TFLite-Micro rejects, and int8 cannot represent it.
    """
    size, strides = (1, node.size, node.size, 1), (1, node.stride, node.stride, 1)
    padded = jnp.pad(x, [(0, 0), *window(node), (0, 0)])
    return jax.lax.reduce_window(padded, -jnp.inf, jax.lax.max, size, strides, 'VALID')


def leaky(node: Node, x: jax.Array) -> jax.Array:
    """The leaky rectifier as a sum that the quantiser supports; `with_own_operators` turns it into one operator."""
    slope = jnp.broadcast_to(node.slopes, x.shape[-1:]).reshape(1, 1, 1, -1)
    return slope * x + (1 - slope) * jnp.maximum(x, 0)


FORMS = COMPUTE | {'max_pool': max_pool, 'leaky_relu': leaky, 'prelu': leaky}


def converted(graph: Graph, batch: int | None = None) -> bytes:
    """The bytes that the converter makes of `graph`: for `packed`, or for `quantise.tflite_model` and then `packed`."""
    check_installed()
    images = jax.ShapeDtypeStruct((batch or 1, *graph.image_shape), np.float32)
    bytecode = io.BytesIO()
    with without_paths():
        module: Any = jax.jit(lambda x: apply(graph, x, FORMS)).lower(images).compiler_ir('stablehlo')
        module.operation.write_bytecode(bytecode)
    with files.temporary_directory() as directory:
        source, target = directory / 'module.mlir', directory / 'network.tflite'
        source.write_bytes(bytecode.getvalue())
        ended = subprocess.run([sys.executable, '-c', CONVERTER, source, target], capture_output=True, text=True)
        if ended.returncode or not target.exists():
            said = ended.stderr.strip().splitlines()[-1:] or ['no output']
            raise UserError(f'litert-converter failed with status {ended.returncode}: {said[0]}')
        return target.read_bytes()


def model(graph: Graph, batch: int | None = None, metadata: dict[str, Any] | None = None) -> bytes:
    """A flatbuffer of float32 images [batch, H, W, C]; None: 1, which `resize_tensor_input` changes.

    Args:
      metadata: JSON values that go into the file's metadata.
    """
    return packed(converted(graph, batch), metadata or {})


def flatbuffer_schema() -> Any:
    """The module that reads and writes the format; its generated types are too narrow to be checked against."""
    return importlib.import_module('ai_edge_litert.schema_py_generated')


def packed(raw: bytes, metadata: dict[str, Any]) -> bytes:
    """The same model as every runtime reads it: buffers inside, TFLite's own operators, `metadata` (JSON values) added.

    Writers put large buffers behind the flatbuffer, by offset. LiteRT and Vela follow that; OpenVINO refuses such a
    file, MNN converts it to one that cannot run, and TFLite-Micro computes wrong results without an error.
    """
    import flatbuffers

    schema = flatbuffer_schema()
    found = schema.ModelT.InitFromPackedBuf(raw, 0)
    for buffer in found.buffers:
        if buffer.offset > 1:  # 0 and 1 mean none
            buffer.data = np.frombuffer(raw, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    with_own_operators(found)
    if metadata:
        text: Any = schema.BufferT()
        text.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
        entry = schema.MetadataT()
        entry.name, entry.buffer = METADATA, len(found.buffers)
        found.buffers.append(text)
        found.metadata = [*(found.metadata or []), entry]
    builder = flatbuffers.Builder(len(raw))
    builder.Finish(found.Pack(builder), b'TFL3')
    return bytes(builder.Output())


def with_own_operators(found: Any) -> None:
    """Replace, in place, what converter or quantiser cannot write directly by the operators that TFLite has for it.

    Each slope * x + (1 - slope) * relu(x) becomes PRELU. The zeros around a max-pool, which could exceed every value in
    the window unless a ReLU comes before, become a mirrored edge, whose values are in the window already.
    """
    schema = flatbuffer_schema()
    operator, (graph,) = schema.BuiltinOperator, found.subgraphs
    makers = {output: op for op in graph.operators for output in op.outputs}
    readers = {tensor: op for op in graph.operators for tensor in op.inputs}

    def code(op: Any) -> int | None:
        return found.operatorCodes[op.opcodeIndex].builtinCode if op else None

    def becomes(op: Any, builtin: int, inputs: list[int], options: tuple[int, Any] = (0, None)) -> None:
        made = schema.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = builtin
        made.version = 1
        op.opcodeIndex, op.inputs = len(found.operatorCodes), np.asarray(inputs, np.int32)
        op.builtinOptionsType, op.builtinOptions = options
        found.operatorCodes.append(made)

    gone: list[Any] = []
    for add in graph.operators:
        parts = [makers[tensor] for tensor in add.inputs if tensor in makers]
        if code(add) != operator.ADD or [code(part) for part in parts] != [operator.MUL] * 2:
            continue
        for scaled, rest in (parts, parts[::-1]):
            relu = next((op for op in map(makers.get, rest.inputs) if code(op) == operator.RELU), None)
            slopes = [tensor for tensor in scaled.inputs if tensor not in makers]
            if relu and len(slopes) == 1 and relu.inputs[0] in scaled.inputs:
                slope = graph.tensors[slopes[0]]
                slope.shape = np.asarray([1, 1, np.prod(slope.shape, dtype=int)], np.int32)
                becomes(add, operator.PRELU, [relu.inputs[0], slopes[0]])
                gone += [scaled, rest, relu]
                break
    for pad in graph.operators:
        if code(pad) == operator.PAD and code(readers.get(pad.outputs[0])) == operator.MAX_POOL_2D:
            maker = makers.get(pad.inputs[0])
            fused = getattr(maker.builtinOptions, 'fusedActivationFunction', None) if maker else None
            if code(maker) != operator.RELU and fused != schema.ActivationFunctionType.RELU:
                options = schema.MirrorPadOptionsT()
                options.mode = schema.MirrorPadMode.SYMMETRIC
                becomes(pad, operator.MIRROR_PAD, list(pad.inputs), (schema.BuiltinOptions.MirrorPadOptions, options))
    graph.operators = [op for op in graph.operators if all(op is not other for other in gone)]
    without_unused_tensors(found)


def without_unused_tensors(found: Any) -> None:
    """Remove, in place, tensors that no operator reads or writes: TFLite-Micro gives each a place in its arena."""
    (graph,) = found.subgraphs
    indexed = [graph, *graph.operators]  # -1 stands for an input that an operator leaves out
    used = {int(tensor) for holder in indexed for tensors in (holder.inputs, holder.outputs) for tensor in tensors}
    place = {tensor: position for position, tensor in enumerate(sorted(used - {-1}))} | {-1: -1}
    for holder in indexed:
        holder.inputs = np.asarray([place[int(tensor)] for tensor in holder.inputs], np.int32)
        holder.outputs = np.asarray([place[int(tensor)] for tensor in holder.outputs], np.int32)
    for signature in found.signatureDefs or []:
        for tensor in [*signature.inputs, *signature.outputs]:
            tensor.tensorIndex = place[tensor.tensorIndex]
    graph.tensors = [tensor for index, tensor in enumerate(graph.tensors) if index in place]


def read_metadata(raw: bytes) -> dict[str, Any]:
    """The metadata that `packed` wrote into a model; {} where there is none."""
    schema = flatbuffer_schema()
    found = schema.ModelT.InitFromPackedBuf(raw, 0)
    for entry in found.metadata or []:
        if entry.name.decode() == METADATA:
            return json.loads(bytes(found.buffers[entry.buffer].data))
    return {}


def operators(raw: bytes) -> list[str]:
    """The names of a model's operators, in the order in which they run."""
    schema = flatbuffer_schema()
    found = schema.ModelT.InitFromPackedBuf(raw, 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    return [names[found.operatorCodes[op.opcodeIndex].builtinCode] for op in found.subgraphs[0].operators]
