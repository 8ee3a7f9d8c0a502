"""A graph as TFLite, by litert-converter from StableHLO.

The converter is young: its version is pinned exactly and it runs in a process of its own, where a crash
of its native code becomes an error here. It is given bytecode of the lowered module; it segfaults on
jax.export's serialisation.
"""

import importlib.metadata
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jointrd_jax.deploy.graph import INPUT, OUTPUT, Graph, apply
from jointrd_jax.errors import UserError, require

PINNED = {'litert-converter': '0.5.0', 'ai-edge-litert': '2.3.0'}

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


def check_installed() -> None:
    """The extra [tflite], in exactly the versions that are known to work.

    Raises:
      UserError: missing, or another version.
    """
    require('litert_converter', 'tflite')
    require('ai_edge_litert', 'tflite')
    for package, wanted in PINNED.items():
        if (found := importlib.metadata.version(package)) != wanted:
            raise UserError(f"{package} {found} is installed, {wanted} is needed: pip install 'jointrd_jax[tflite]'")


def model(graph: Graph, batch: int | None = None) -> bytes:
    """A flatbuffer of float32 images [batch, H, W, C]; None: 1, which `resize_tensor_input` changes."""
    check_installed()
    images = jax.ShapeDtypeStruct((batch or 1, *graph.image_shape), np.float32)
    bytecode = io.BytesIO()
    module: Any = jax.jit(lambda x: apply(graph, x)).lower(images).compiler_ir('stablehlo')
    module.operation.write_bytecode(bytecode)
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / 'module.mlir', Path(directory) / 'network.tflite'
        source.write_bytes(bytecode.getvalue())
        ended = subprocess.run([sys.executable, '-c', CONVERTER, source, target], capture_output=True, text=True)
        if ended.returncode or not target.exists():
            said = ended.stderr.strip().splitlines()[-1:] or ['nothing said']
            raise UserError(f'litert-converter failed with status {ended.returncode}: {said[0]}')
        return target.read_bytes()
