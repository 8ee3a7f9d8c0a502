"""Microcontrollers, by TFLite-Micro's own interpreter: its arena, and what the network computes in it."""

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

TITLE = 'microcontrollers, by TFLite-Micro'
PACKAGE, VERSION = 'tflite-micro', '0.dev20261023182759'
INSTALL = "pip install 'jointrd_jax[targets]'"
CONFIGURATIONS = {
    'int8': {'takes': 'int8_tflite', 'predicted': ('nothing', 1)},  # its planner lets no operator write in place
    'float32': {'takes': 'tflite', 'predicted': ('nothing', 4)},
}
ARENA = 256 * 2**20  # bytes to begin with; what was used of them is reported


@contextmanager
def printed(into: list[str]):
    """While the body runs, collect what native code prints; at its end the lines are added to `into`."""
    with tempfile.TemporaryFile('w+') as file:
        kept = os.dup(1), os.dup(2)
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)
            file.seek(0)
            into += file.read().splitlines()


def measure(request: dict[str, Any], worker: Any) -> dict[str, Any]:
    import numpy as np
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_file(request['artifact'], arena_size=ARENA)

    def quantised(end: dict[str, Any]) -> dict[str, float] | None:
        held = end['quantization_parameters']
        return {'scale': held['scales'][0], 'zero_point': held['zero_points'][0]} if len(held['scales']) else None

    entry, result = quantised(interpreter.get_input_details(0)), quantised(interpreter.get_output_details(0))

    def call(images: np.ndarray) -> np.ndarray:
        interpreter.set_input(worker.to_int8(images, entry) if entry else images, 0)
        interpreter.invoke()
        logits = np.array(interpreter.get_output(0))
        return (logits.astype(np.float32) - result['zero_point']) * result['scale'] if result else logits

    def load(path: str) -> Callable:
        return call

    # Its kernels are references for any chip: their time on this machine says nothing.
    found = worker.runtime_figures({**request, 'rounds': 0}, load)
    if not request['images']:
        call(np.zeros((1, *request['image_shape']), np.float32))
    lines: list[str] = []
    with printed(lines):
        interpreter.print_allocations()
    sizes = {
        part: int(size)
        for part, size in re.findall(r'Arena allocation (head|tail|total) (\d+) bytes', '\n'.join(lines))
    }
    return {
        **found,
        'memory_bytes': sizes['head'],
        'memory_kind': 'arena for feature maps',
        'memories': {f'arena {part}': size for part, size in sizes.items()},
    }
