"""Run one exported file in a process of its own: images on standard input, logits on standard output.

    python -m jointrd_jax.deploy.runner network.onnx

Arrays travel as .npy with their length in front. The process is given the file alone, not the
checkpoint. `Runner` is the other end.
"""

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

import jointrd_jax

LENGTH = struct.Struct('<Q')
Function = Callable[[np.ndarray], np.ndarray]


def send(stream: BinaryIO, array: np.ndarray) -> None:
    blob = io.BytesIO()
    np.save(blob, array)
    stream.write(LENGTH.pack(blob.tell()) + blob.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> np.ndarray | None:
    """The next array; None at the end."""
    head = stream.read(LENGTH.size)
    return np.load(io.BytesIO(stream.read(*LENGTH.unpack(head)))) if len(head) == LENGTH.size else None


def load_onnx(path: str) -> Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: np.ascontiguousarray(images.transpose(0, 3, 1, 2))})[0])


def load_tflite(path: str) -> Function:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=os.cpu_count())
    entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(entry['index'], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry['index'], to_int8(images, entry))
        interpreter.invoke()
        return from_int8(interpreter.get_tensor(result['index']), result)

    return run


def to_int8(images: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    """Images as the input described by `entry` takes them: rounded to its scale if it is int8, else as they are."""
    scale, zero_point = entry['quantization']
    if entry['dtype'] != np.int8:
        return images
    return np.clip(np.round(images / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def from_int8(logits: np.ndarray, result: dict[str, Any]) -> np.ndarray:
    scale, zero_point = result['quantization']
    return (logits.astype(np.float32) - zero_point) * np.float32(scale) if logits.dtype == np.int8 else logits


def load_stablehlo(path: str) -> Function:
    import jax
    from jax import export

    held = export.deserialize(bytearray(Path(path).read_bytes()))
    jax.config.update('jax_platforms', held.platforms[0])  # a file runs on its own platform alone
    return lambda images: np.asarray(held.call(images))


def load_portable(path: str) -> Function:
    import jax

    from jointrd_jax.deploy import stablehlo

    jax.config.update('jax_platforms', 'cpu')  # `load_portable` makes a program for it
    rows, call = stablehlo.load_portable(Path(path).read_bytes())

    def run(images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + rows] for start in range(0, len(images), rows)]
        whole = [np.pad(part, [(0, rows - len(part)), (0, 0), (0, 0), (0, 0)]) for part in parts]
        return np.concatenate([np.asarray(call(part)) for part in whole])[: len(images)]

    return run


def load_safetensors(path: str) -> Function:
    import jax

    from jointrd_jax.runs import weights
    from jointrd_jax.system import runtime

    runtime.configure()
    network, variables, *_ = weights.load(path)
    apply = jax.jit(network.apply)
    return lambda images: np.asarray(apply(variables, images).logits)


LOADERS = {
    '.onnx': load_onnx,
    '.tflite': load_tflite,
    '.stablehlo': load_stablehlo,
    '.mlirbc': load_portable,
    '.safetensors': load_safetensors,
}


def environment() -> dict[str, str]:
    """Variables for the process: this package is found there, and the last line of an error is its reason."""
    checkout = Path(jointrd_jax.__file__).parent.parent
    installed = checkout.name in ('site-packages', 'dist-packages')  # found anyway; not before Python's own
    paths = [None if installed else str(checkout), os.environ.get('PYTHONPATH')]
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'JAX_TRACEBACK_FILTERING': 'off',
    }


class Runner:
    """An exported file, running in a fresh process; call it with images [B, H, W, C], use it in a `with`.

    Raises:
      RuntimeError: the process ended; the message is the last line of its standard error.
    """

    def __init__(self, path: Path):
        self.path, command = path, [sys.executable, '-P', '-W', 'ignore', '-m', __name__, str(path)]
        self.errors = open(os.memfd_create('errors'), 'w+')
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment()
        )
        self.images, self.logits = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            send(self.images, images)
            logits = receive(self.logits)
        except BrokenPipeError:
            logits = None
        if logits is None:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines()[-1:] or [f'status {self.process.returncode}']
            raise RuntimeError(said[0])
        return logits

    def __enter__(self) -> 'Runner':
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.images, self.logits, self.errors):
            try:
                stream.close()
            except BrokenPipeError:
                pass


def main(path: str) -> None:
    stream = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # what a runtime prints must not end up between the arrays
    run = LOADERS[Path(path).suffix](path)
    while (images := receive(sys.stdin.buffer)) is not None:
        send(stream, run(images))


if __name__ == '__main__':
    main(sys.argv[1])
